"""The reference in float64 against the oracle, which loops over patches; and the layout of generated weights."""

import pytest
import torch

from hyperseg.ops import _layout, reference
from tests.ops import oracle
from tests.ops.cases import CASES, LABELLING, Case, normal, outputs
from tests.tolerances import FORWARD, assert_close

EXACT = FORWARD[torch.float64]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_the_reference_matches_the_oracle(case: Case):
    args = case.arguments(torch.float64)
    expected = getattr(oracle, case.operator)(*args)
    actual = getattr(reference, case.operator)(*args)
    if case.operator in LABELLING:
        assert torch.equal(actual, expected)
        return
    if case.operator == "upsample_cross_entropy":
        actual = actual[0]  # test_upsample_cross_entropy.py tests the weights of pixels
    for i, (a, e) in enumerate(zip(outputs(actual), outputs(expected), strict=True)):
        assert_close(f"output {i}", a, e, EXACT)


# The layout of the generated weights (SPEC E): one weight is 1 and all others are 0, so the output shows its index.


def one_hot(length: int, index: int, grid: tuple[int, int], patch: tuple[int, int]) -> torch.Tensor:
    """Return weights that are 1 for parameter ``index`` of one patch and 0 elsewhere."""
    weights = torch.zeros(1, *grid, length, dtype=torch.float64)
    weights[0, patch[0], patch[1], index] = 1
    return weights


@pytest.fixture
def x():
    return normal(torch.Generator().manual_seed(0), 1, 3, 8, 9)


PATCH = (slice(4, 8), slice(3, 6))  # the 4x3 pixels of patch (1, 1) in the 2x3 grid


@pytest.mark.parametrize(("o", "i"), [(0, 0), (0, 2), (1, 0), (3, 1)])
def test_index_of_pointwise_weights(x, o, i):
    weights = one_hot(4 * 3, o * 3 + i, (2, 3), (1, 1))
    y = reference.patch_conv2d(x, weights, None, 4, [1, 1], 1, [1, 1], "reflect")
    expected = torch.zeros_like(y)
    expected[0, o][PATCH] = x[0, i][PATCH]
    assert torch.equal(y, expected)


@pytest.mark.parametrize(("o", "i", "ky", "kx"), [(0, 0, 0, 0), (1, 2, 0, 2), (2, 1, 2, 1), (3, 0, 1, 2)])
def test_index_of_convolution_weights(x, o, i, ky, kx):
    weights = one_hot(4 * 3 * 9, ((o * 3 + i) * 3 + ky) * 3 + kx, (2, 3), (1, 1))
    y = reference.patch_conv2d(x, weights, None, 4, [3, 3], 1, [1, 1], "zeros")
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1))
    expected = torch.zeros_like(y)
    expected[0, o][PATCH] = padded[0, i, ky : ky + 8, kx : kx + 9][PATCH]
    assert torch.equal(y, expected)


@pytest.mark.parametrize(
    ("c", "i", "ky", "kx", "o"), [(0, 0, 1, 1, 0), (4, 2, 0, 2, 3), (2, 1, 2, 0, 1)], ids=["first", "last", "middle"]
)
@pytest.mark.parametrize("halo", ["own", "neighbour"])
def test_index_of_block_weights(x, c, i, ky, kx, o, halo):
    hidden, out = 5, 4
    x = x.abs().clamp(max=5)  # so that ReLU6 changes nothing
    total = 3 * hidden + 9 * hidden + hidden * out
    expand = c * 3 + i
    depthwise = 3 * hidden + c * 9 + 3 * ky + kx
    project = 3 * hidden + 9 * hidden + o * hidden + c
    grid = (2, 3)
    weights = sum(one_hot(total, index, grid, (1, 1)) for index in (depthwise, project))
    weights[..., expand] = 1  # in all patches: the neighbours expand their own pixels
    y = reference.patch_inverted_residual(x, weights, None, hidden, out, halo)
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1), mode="reflect")
    expected = torch.zeros_like(y)
    expected[0, o][PATCH] = padded[0, i, ky : ky + 8, kx : kx + 9][PATCH]
    assert torch.equal(y, expected)


def test_coordinates_are_x_then_y_from_corner_to_corner():
    grid = _layout.coordinates(3, 5, torch.zeros(1, dtype=torch.float64))
    assert grid[0, 0].tolist() == [[-1, -0.5, 0, 0.5, 1]] * 3
    assert grid[0, 1].tolist() == [[-1] * 5, [0] * 5, [1] * 5]


def test_the_input_of_a_level_is_coordinates_skip_previous(x):
    seen = _layout.level_input(x, x[:, :2] + 7)
    assert seen.shape == (1, 7, 8, 9)
    assert torch.equal(seen[:, :2], _layout.coordinates(8, 9, x))
    assert torch.equal(seen[:, 2:5], x)
    assert torch.equal(seen[:, 5:], x[:, :2] + 7)


@pytest.mark.parametrize("halo", ["own", "neighbour"])
def test_the_order_of_patches(x, halo):
    """A patch's weights change only its own pixels and, with the neighbours' halo, the pixels around it."""
    g = torch.Generator().manual_seed(1)
    total = _layout.level_parameters(3, 5, 4)
    weights = normal(g, 1, 2, 3, total)
    before = reference.patch_inverted_residual(x, weights, None, 5, 4, halo)
    weights[0, 1, 2] += 1
    changed = (reference.patch_inverted_residual(x, weights, None, 5, 4, halo) != before)[0].any(0)
    assert changed[4:, 6:].all()
    reach = slice(3, None), slice(5, None)
    changed[(slice(4, None), slice(6, None)) if halo == "own" else reach] = False
    assert not changed.any()
