"""Infinite inputs, which overflow makes in float16: where the reference clamps them, no backend returns NaN."""

import pytest
import torch

from hyperseg.ops import reference
from tests.ops.cases import HALOS, Case, double, level, residual
from tests.ops.targets import Target, on_every_target
from tests.tolerances import FORWARD, assert_close

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
INNER = (0, 1, 2, 3)  # far enough from the border that no neighbour samples it with a weight of 0


def check(target: Target, case: Case, dtype: torch.dtype, argument: int, infinity: float) -> None:
    args = list(case.arguments(dtype, target.device))
    args[argument][INNER] = infinity
    actual = target.run(case.operator, tuple(args))
    expected = getattr(reference, case.operator)(*double(tuple(args)))
    odd = ~expected.isfinite()
    assert torch.equal(actual.cpu()[odd].double().nan_to_num(nan=7), expected[odd].nan_to_num(nan=7))
    assert_close("output", actual.cpu()[~odd], expected[~odd], FORWARD[dtype])


@on_every_target("patch_inverted_residual")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("halo", HALOS)
@pytest.mark.parametrize("hidden", [5, 16])
def test_infinities_in_a_block(target: Target, dtype: torch.dtype, halo: str, hidden: int):
    case = Case("patch_inverted_residual", "infinity", residual(hidden=hidden, patch=(4, 4), halo=halo))
    for infinity in (torch.inf, -torch.inf):
        check(target, case, dtype, 0, infinity)


@on_every_target("decoder_level")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("previous", [4, 8])
@pytest.mark.parametrize("hidden", [0, 5])
@pytest.mark.parametrize("argument", [0, 1], ids=["skip", "previous"])
def test_infinities_in_a_level(target: Target, dtype: torch.dtype, previous: int, hidden: int, argument: int):
    case = Case("decoder_level", "infinity", level(previous=previous, hidden=hidden, patch=(4, 4)))
    for infinity in (torch.inf, -torch.inf):
        check(target, case, dtype, argument, infinity)
