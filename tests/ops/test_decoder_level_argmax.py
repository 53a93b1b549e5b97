"""Labels of a level: equal scores, NaN scores, and agreement with the argmax of decoder_level."""

import pytest
import torch

from hyperseg import ops
from tests.ops.cases import HALOS, Case, level
from tests.ops.targets import Target, on_every_target

# test_parity.py skips the other backends and names their reasons.
on_targets = on_every_target("decoder_level_argmax")
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
halos = pytest.mark.parametrize("halo", HALOS)


def arguments(target: Target, dtype: torch.dtype, halo: str, out: int = 5) -> ops.LevelArguments:
    build = level(1, hidden=6, out=out, grid=(1, 2), patch=(4, 4), halo=halo)
    return ops.LevelArguments(*Case("decoder_level_argmax", "labels", build).arguments(dtype, target.device))


@on_targets
@dtypes
@halos
@pytest.mark.parametrize("out", [1, 2, 5, 9, 32, 40])
def test_labels_are_the_argmax_of_the_levels_output(target: Target, dtype: torch.dtype, halo: str, out: int):
    args = arguments(target, dtype, halo, out)
    scores = target.run("decoder_level", args)
    labels = target.run("decoder_level_argmax", args)
    assert torch.equal(labels.long(), scores.argmax(1))


@on_targets
@dtypes
@halos
def test_of_equal_scores_the_lowest_class_wins(target: Target, dtype: torch.dtype, halo: str):
    """The equal scores may be held by one thread or by several."""
    args = arguments(target, dtype, halo, out=24)
    args = args._replace(weights=torch.zeros_like(args.weights))  # so the scores are the biases
    for best in ([0, 1], [3, 2, 23], [10, 16, 12], [7, 8], [22, 23]):
        args.bias.zero_()
        args.bias[[12 + o for o in best]] = 1
        assert (target.run("decoder_level_argmax", args) == min(best)).all()
    args.bias.fill_(-torch.inf)
    assert (target.run("decoder_level_argmax", args) == 0).all()


@on_targets
@dtypes
@halos
def test_nan_counts_as_the_largest_score(target: Target, dtype: torch.dtype, halo: str):
    args = arguments(target, dtype, halo, out=12)
    args.bias[[12 + 3, 12 + 9]] = torch.nan
    assert (target.run("decoder_level_argmax", args) == 3).all()


def test_labels_have_no_gradient():
    args = arguments(Target("reference", "cpu"), torch.float32, "own")
    skip, previous, weights, bias = (t.requires_grad_() for t in (args.skip, args.previous, args.weights, args.bias))
    labels = ops.decoder_level_argmax(skip, previous, weights=weights, bias=bias, out_channels=5, hidden=6)
    assert labels.dtype == torch.uint8
    assert not labels.requires_grad
