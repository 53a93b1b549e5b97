"""Inputs that are infinite or NaN: no backend returns NaN where the reference does not, and none hides a NaN.

Infinities are what overflow makes in float16. NaN that an operator hid would let a training go on with wrong weights.
"""

import pytest
import torch

from hyperseg.ops import reference
from tests.ops.cases import HALOS, Case, batch_norm, double, generators, level, residual
from tests.ops.targets import Target, on_every_target
from tests.ops.test_parity import flat, truth
from tests.tolerances import FORWARD, GRADIENT, assert_close

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


@on_every_target("decoder_level")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("previous", [4, 8])
@pytest.mark.parametrize("hidden", [0, 5])
@pytest.mark.parametrize("grid", [(2, 3), (1, 1)], ids=["six-patches", "one-patch"])
def test_a_map_of_the_same_size_is_not_sampled(target: Target, dtype: torch.dtype, previous: int, hidden: int, grid):
    """No neighbour of an infinity is multiplied by 0, not even beyond the border."""
    case = Case(
        "decoder_level", "infinity", level(2, 3, previous, hidden=hidden, grid=grid, size=(4 * grid[0], 4 * grid[1]))
    )
    for place in ((0, 0, 2, 3), (1, 2, 0, 0), (0, 1, -1, -1)):
        for infinity in (torch.inf, -torch.inf):
            args = case.arguments(dtype, target.device)
            args[1][place] = infinity
            actual, (expected,) = target.run("decoder_level", args).cpu().double(), truth("decoder_level", args)
            assert torch.equal(actual.isnan(), expected.isnan())
            assert torch.equal(actual.isinf(), expected.isinf())


@on_every_target("patch_inverted_residual_batch_norm")
@pytest.mark.parametrize("halo", HALOS)
@pytest.mark.parametrize("argument", [2, 3], ids=["scale", "shift"])
def test_nan_stays_in_its_channel_of_a_batch_norm(target: Target, halo: str, argument: int):
    """Statistics are NaN after the norm that got a NaN, and only in the channels that depend on it."""
    case = Case("patch_inverted_residual_batch_norm", "nan", batch_norm(hidden=5, patch=(3, 5), halo=halo))
    for channel in (0, 3, 7):  # the first norm has channels 0 to 4, the second 5 to 9
        args = case.arguments(torch.float32, target.device)
        args[argument][channel] = torch.nan
        actual = flat(target.run(case.operator, args))
        for a, e in zip(actual, truth(case.operator, args), strict=True):
            assert torch.equal(a.isnan().cpu(), e.isnan())


@on_every_target("decoder_level_backward")
@pytest.mark.parametrize("patch", [(2, 3), (9, 9)], ids=["few-pixels", "many-pixels"])
@pytest.mark.parametrize("argument", [4, 5], ids=["weights", "bias"])
def test_relu_passes_gradients_on_where_its_input_is_nan(target: Target, patch: tuple[int, int], argument: int):
    """And a NaN of one output channel does not open the ReLU of another."""
    args = Case("decoder_level", "nan", level(1, 2, 0, out=4, patch=patch)).arguments(torch.float32, target.device)
    args[argument][..., 0] = torch.nan
    grad = torch.ones(reference.decoder_level(*args).shape, device=target.device)
    actual = flat(target.run("decoder_level_backward", (grad, *args)))
    expected = truth("decoder_level_backward", (grad, *args))
    for i in (0, 4, 5):
        assert torch.equal(actual[i].isnan().cpu(), expected[i].isnan())
        known = ~expected[i].isnan()
        assert_close(f"gradient {i}", actual[i].cpu()[known], expected[i][known], GRADIENT[torch.float32])


@on_every_target("patch_inverted_residual_backward")
@pytest.mark.parametrize("halo", HALOS)
def test_nan_of_a_hidden_value_reaches_the_gradients_of_the_weights(target: Target, halo: str):
    case = Case("patch_inverted_residual", "nan", residual(1, hidden=5, patch=(3, 5), halo=halo))
    args = case.arguments(torch.float32, target.device)
    args[0][0, 0, 0, 0] = torch.nan
    grad = torch.ones(reference.patch_inverted_residual(*args).shape, device=target.device)
    weights = flat(target.run("patch_inverted_residual_backward", (grad, *args)))[1].cpu()
    expected = truth("patch_inverted_residual_backward", (grad, *args))[1]
    assert expected.isnan().any()
    assert weights[expected.isnan()].isnan().all()


@on_every_target("generate_weights_backward")
def test_a_surplus_row_has_no_influence(target: Target):
    """NaN in rows that pad a generator to a multiple of its groups reaches neither the result nor a gradient."""
    case = Case("generate_weights", "surplus", generators(parts=((0, 12, 4, 12, 9), (0, 12, 1, 7, 5))))
    clean = case.arguments(torch.float32, target.device)
    spoilt = case.arguments(torch.float32, target.device)
    for generator, size in zip(spoilt[1], (9, 5), strict=True):
        generator[size:] = torch.nan
    assert torch.equal(target.run("generate_weights", spoilt), target.run("generate_weights", clean))
    grad = torch.ones_like(reference.generate_weights(*clean))
    pairs = [flat(target.run("generate_weights_backward", (grad, *args))) for args in (spoilt, clean)]
    for a, b in zip(*pairs, strict=True):
        assert torch.equal(a, b)
