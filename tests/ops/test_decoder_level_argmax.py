"""Labels of a level: where scores tie or are not numbers, and that they are those of the level's own answer."""

import pytest
import torch

from hyperseg import ops
from tests.ops.cases import HALOS, Case, level
from tests.ops.targets import Target, on_every_target

# Those that cannot are named, with their reasons, by test_parity.py.
on_able = on_every_target("decoder_level_argmax")
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
halos = pytest.mark.parametrize("halo", HALOS)


def arguments(target: Target, dtype: torch.dtype, halo: str, out: int = 5) -> list:
    build = level(1, hidden=6, out=out, grid=(1, 2), patch=(4, 4), halo=halo)
    return list(Case("decoder_level_argmax", "labels", build).arguments(dtype, target.device))


@on_able
@dtypes
@halos
@pytest.mark.parametrize("out", [1, 2, 5, 9, 32, 40])
def test_labels_are_of_the_levels_own_answer(target: Target, dtype: torch.dtype, halo: str, out: int):
    args = arguments(target, dtype, halo, out)
    scores = target.run("decoder_level", tuple(args))
    labels = target.run("decoder_level_argmax", tuple(args))
    assert torch.equal(labels.long(), scores.argmax(1))


@on_able
@dtypes
@halos
def test_of_equal_scores_the_lowest_class_wins(target: Target, dtype: torch.dtype, halo: str):
    """Wherever they lie among those that a thread has, or its neighbours."""
    args = arguments(target, dtype, halo, out=24)
    args[2] = torch.zeros_like(args[2])  # what is left are the biases
    for best in ([0, 1], [3, 2, 23], [10, 16, 12], [7, 8], [22, 23]):
        args[4] = torch.zeros_like(args[4])
        args[4][[12 + o for o in best]] = 1
        assert (target.run("decoder_level_argmax", tuple(args)) == min(best)).all()
    args[4] = torch.full_like(args[4], -torch.inf)
    assert (target.run("decoder_level_argmax", tuple(args)) == 0).all()


@on_able
@dtypes
@halos
def test_nan_counts_as_the_largest_score(target: Target, dtype: torch.dtype, halo: str):
    args = arguments(target, dtype, halo, out=12)
    args[4][[12 + 3, 12 + 9]] = torch.nan
    assert (target.run("decoder_level_argmax", tuple(args)) == 3).all()


def test_labels_have_no_gradient():
    args = arguments(Target("reference", "cpu"), torch.float32, "own")
    skip, previous, source, _, bias, *_ = (a.requires_grad_() if isinstance(a, torch.Tensor) else a for a in args)
    labels = ops.decoder_level_argmax(skip, previous, source, bias, out_channels=5, hidden=6)
    assert labels.dtype == torch.uint8
    assert not labels.requires_grad
