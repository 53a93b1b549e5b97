"""The two halos of the inverted residual (SPEC G): pixels where they differ, and the populations of batch norms."""

import pytest
import torch

from hyperseg.ops import patch_inverted_residual, patch_inverted_residual_batch_norm
from tests.ops.cases import block_weights, normal

HIDDEN, OUT = 10, 4


def both(x, weights, bias=None):
    """Return the outputs with own and with neighbours' halos."""
    return [
        patch_inverted_residual(x, weights, bias, hidden=HIDDEN, out_channels=OUT, halo=halo)
        for halo in ("own", "neighbour")
    ]


def demonstration(grid=(3, 4), patch=(4, 6), constant=False):
    """Return arguments as in SPEC G's example: 2x5x12x24 pixels in 3x4 patches."""
    g = torch.Generator().manual_seed(0)
    x = normal(g, 2, 5, grid[0] * patch[0], grid[1] * patch[1])
    weights = block_weights(g, (2, *grid), 5, HIDDEN, OUT)
    if constant:
        weights = weights[:, :1, :1].expand_as(weights)
    return x, weights, normal(g, 2 * HIDDEN + OUT)


def seams(height: int, width: int, ph: int, pw: int) -> torch.Tensor:
    """Return a mask of the pixels beside the border between two patches."""

    def beside(size: int, patch: int) -> torch.Tensor:
        patches = torch.arange(size) // patch
        change = patches[1:] != patches[:-1]
        return torch.cat([change, change.new_zeros(1)]) | torch.cat([change.new_zeros(1), change])

    rows, columns = beside(height, ph), beside(width, pw)
    return rows[:, None] | columns[None, :]


@pytest.mark.parametrize(("grid", "patch"), [((3, 4), (4, 6)), ((2, 3), (2, 2)), ((1, 4), (5, 3))], ids=str)
def test_halos_differ_only_beside_seams(grid, patch):
    x, weights, bias = demonstration(grid, patch)
    own, neighbour = both(x, weights, bias)
    difference = (own - neighbour).abs().amax((0, 1))
    beside = seams(*x.shape[2:], *patch)
    assert (difference[beside] > 1e-3).all()
    assert difference[~beside].numel() == 0 or difference[~beside].max() < 1e-12


def test_halos_agree_with_constant_weights():
    x, weights, bias = demonstration(constant=True)
    own, neighbour = both(x, weights, bias)
    assert (own - neighbour).abs().max() < 1e-12


def test_halos_agree_on_one_patch():
    x, weights, bias = demonstration((1, 1), (5, 7))
    own, neighbour = both(x, weights, bias)
    assert (own - neighbour).abs().max() < 1e-12


def test_patch_size_1_differs_everywhere():
    """Every neighbouring pixel belongs to another patch, also the reflected ones at the border."""
    x, weights, bias = demonstration((5, 6), (1, 1))
    own, neighbour = both(x, weights, bias)
    assert ((own - neighbour).abs().amax((0, 1)) > 1e-3).all()


# If all weights are 1, the first norm's mean is the mean of the pixels that it counts.


def first_mean(x, grid, halo):
    """Return the first norm's mean and variance. All weights are 1, so it normalises copies of the pixels of x."""
    n = x.shape[0]
    weights = torch.ones(n, *grid, 1 + 9 + 1, dtype=x.dtype)
    ones = torch.ones(3, dtype=x.dtype)
    _, mean, variance = patch_inverted_residual_batch_norm(x, weights, ones, ones, hidden=1, out_channels=1, halo=halo)
    return mean[0], variance[0]


@pytest.mark.parametrize(("halo", "population"), [("own", 1152), ("neighbour", 576)])
def test_population_of_the_first_norm(halo, population):
    """2x12x24 pixels in 3x4 patches: 576 pixels, or 24 patches of 6x8 with their halo."""
    x = torch.zeros(2, 1, 12, 24, dtype=torch.float64)
    x[1, 0, 5, 8] = 1  # inside patch (1, 1), away from its border: counted once
    mean, variance = first_mean(x, (3, 4), halo)
    assert mean.item() == pytest.approx(1 / population, rel=1e-12)
    assert variance.item() == pytest.approx(1 / population - 1 / population**2, rel=1e-12)


@pytest.mark.parametrize(
    ("pixel", "times"),
    [((5, 8), 1), ((4, 8), 2), ((4, 6), 4), ((1, 1), 4), ((0, 0), 1), ((1, 3), 2), ((3, 6), 4)],
    ids=[
        "inside",
        "beside a seam",
        "at four patches",
        "reflected twice",
        "corner",
        "reflected once",
        "corner of patch",
    ],
)
def test_own_halos_count_every_occurrence_of_a_pixel(pixel, times):
    x = torch.zeros(2, 1, 12, 24, dtype=torch.float64)
    x[0, 0][pixel] = 1
    assert first_mean(x, (3, 4), "own")[0].item() == pytest.approx(times / 1152, rel=1e-12)
    assert first_mean(x, (3, 4), "neighbour")[0].item() == pytest.approx(1 / 576, rel=1e-12)


def test_batch_statistics_differ_even_with_constant_weights():
    x, weights, _ = demonstration(constant=True)
    ones = torch.ones(2 * HIDDEN + OUT, dtype=x.dtype)
    own, neighbour = [
        patch_inverted_residual_batch_norm(x, weights, ones, ones, hidden=HIDDEN, out_channels=OUT, halo=halo)[0]
        for halo in ("own", "neighbour")
    ]
    assert (own - neighbour).abs().max() > 1e-2


@pytest.mark.parametrize("halo", ["own", "neighbour"])
def test_folded_norms_match_batch_norm(halo):
    """Fold the returned statistics into weights and bias: the output stays the same."""
    x, weights, _ = demonstration()
    g = torch.Generator().manual_seed(1)
    scale, shift = 1 + 0.2 * normal(g, 2 * HIDDEN + OUT), normal(g, 2 * HIDDEN + OUT)
    y, mean, variance = patch_inverted_residual_batch_norm(
        x, weights, scale, shift, hidden=HIDDEN, out_channels=OUT, halo=halo
    )
    factor = scale * (variance + 1e-5).rsqrt()
    e, d, p = factor.split([HIDDEN, HIDDEN, OUT])
    rows = torch.cat([e.repeat_interleave(5), d.repeat_interleave(9), p.repeat_interleave(HIDDEN)])
    folded = patch_inverted_residual(
        x, weights * rows, shift - mean * factor, hidden=HIDDEN, out_channels=OUT, halo=halo
    )
    assert (folded - y).abs().max() < 1e-12
