"""FLOPs counted by ``FlopCounterMode``: formulas and totals of SPEC K, two operations per multiply-add."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hyperseg import ops
from hyperseg.models.plan import LevelPlan, decoder_plan
from hyperseg.models.variants import VARIANTS

# SPEC K, GFLOPs at the published resolution: generators, decoder blocks.
PUBLISHED = {
    "hyperseg-s-camvid": (0.108, 0.666),
    "hyperseg-l-camvid": (0.223, 4.206),
    "hyperseg-m-cityscapes": (0.499, 1.492),
    "hyperseg-s-cityscapes": (0.466, 2.055),
    "hyperseg-l-voc": (0.316, 0.727),
}


def count(function, *args, **kwargs) -> int:
    with FlopCounterMode(display=False) as counter:
        function(*args, **kwargs)
    return counter.get_total_flops()


def meta(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta")


def maps(name: str):
    """Yield ``(index, level, grid, map size)`` of every level at the published resolution."""
    config = VARIANTS[name]
    grid = tuple(s // 32 for s in config.resolution)
    for index, level in enumerate(decoder_plan(config).levels):
        yield index, level, grid, tuple(s * 2**index for s in grid)


def multiply_adds(level: LevelPlan, grid, size, halo: str) -> int:
    """Return the multiply-adds of a level by the formulas of SPEC K."""
    pixels = size[0] * size[1]
    if not level.hidden:
        return pixels * level.in_channels * level.out_channels
    ph, pw = size[0] // grid[0], size[1] // grid[1]
    expanded = grid[0] * grid[1] * (ph + 2) * (pw + 2) if halo == "own" else pixels
    depthwise_and_project = pixels * (9 * level.hidden + level.hidden * level.out_channels)
    return expanded * level.in_channels * level.hidden + depthwise_and_project


@pytest.mark.parametrize("name", VARIANTS)
def test_flops_of_generators_are_as_published(name):
    config = VARIANTS[name]
    plan = decoder_plan(config)
    # SPEC K counts whole convolutions with their surplus rows; the operator does not compute these.
    surplus = 0
    total = 0
    grid = [s // 32 for s in config.resolution]
    for g in plan.generators:
        generator = meta(g.rows, g.channels // g.groups)
        signal = meta(1, plan.used_channels, *grid)
        found = count(ops.generate_weights, signal, generator, offsets=g.offset, groups=g.groups, sizes=g.size)
        assert found == 2 * grid[0] * grid[1] * g.size * (g.channels // g.groups)
        surplus += 2 * grid[0] * grid[1] * (g.rows - g.size) * (g.channels // g.groups)
        total += found
    assert (total + surplus) / 1e9 == pytest.approx(PUBLISHED[name][0], abs=6e-4)


@pytest.mark.parametrize("name", VARIANTS)
def test_flops_of_blocks_are_as_published(name):
    halo = VARIANTS[name].halo
    total = 0
    for _, level, grid, size in maps(name):
        x = meta(1, level.in_channels, *size)
        weights = meta(1, *grid, level.parameters)
        if level.hidden:
            width = {"hidden": level.hidden, "out_channels": level.out_channels, "halo": halo}
            found = count(ops.patch_inverted_residual, x, weights, **width)
            affine = meta(2 * level.hidden + level.out_channels)
            assert count(ops.patch_inverted_residual_batch_norm, x, weights, affine, affine, **width) == found
        else:
            found = count(ops.patch_conv2d, x, weights, out_channels=level.out_channels)
        assert found == 2 * multiply_adds(level, grid, size, halo)
        total += found
    assert total / 1e9 == pytest.approx(PUBLISHED[name][1], abs=6e-4)


@pytest.mark.parametrize("name", VARIANTS)
def test_flops_of_a_level_are_the_sum_of_its_parts(name):
    config = VARIANTS[name]
    generators = {i: g for g in decoder_plan(config).generators for i in g.levels}
    for index, level, grid, size in maps(name):
        skip = meta(1, level.skip_channels, *size)
        previous = meta(1, level.previous_channels, *[s // 2 for s in size]) if index else None
        bias = meta(2 * level.hidden + level.out_channels)
        width = {"hidden": level.hidden, "out_channels": level.out_channels, "halo": config.halo}
        block = 2 * multiply_adds(level, grid, size, config.halo)
        weights = meta(1, *grid, level.parameters)
        assert count(ops.decoder_level, skip, previous, weights=weights, bias=bias, **width) == block
        g = generators[index]
        generator = meta(g.rows, g.channels // g.groups)
        found = count(
            ops.decoder_level,
            skip,
            previous,
            signal=meta(1, 1600, *grid),
            generator=generator,
            bias=bias,
            offset=g.offset,
            groups=g.groups,
            **width,
        )
        assert found == block + 2 * grid[0] * grid[1] * level.parameters * generator.shape[1]


def test_flops_of_a_convolution_with_groups_and_a_batch():
    x = meta(3, 6, 8, 10)
    weights = meta(3, 2, 5, 4 * 3 * 3 * 5)
    found = count(ops.patch_conv2d, x, weights, out_channels=4, kernel_size=(3, 5), groups=2)
    assert found == 2 * (3 * 8 * 10) * 4 * 3 * 15


def test_flops_of_an_encoder_block():
    expanding, filtering, squeezing, projecting = 8 * 10 * 6 * 36, 4 * 5 * 36 * 9, 2 * 36 * 2, 4 * 5 * 36 * 7
    weights = [meta(*s) for s in ((36, 6), (36,), (36, 3, 3), (36,), (2, 36), (2,), (36, 2), (36,), (7, 36), (7,))]
    found = count(ops.mbconv, meta(3, 6, 8, 10), *weights, stride=2, padding=(0, 1, 0, 1))
    assert found == 2 * 3 * (expanding + filtering + squeezing + projecting)


def test_flops_of_a_chain_are_those_of_its_blocks():
    sizes = (36, 6), (36,), (36, 3, 3), (36,), (2, 36), (2,), (36, 2), (36,), (6, 36), (6,)
    block = ops.EncoderBlock(*(meta(*s) for s in sizes), stride=2, padding=(0, 1, 0, 1))
    each = [
        count(ops.mbconv, meta(3, 6, *size), *block[:10], stride=2, padding=(0, 1, 0, 1)) for size in ((8, 10), (4, 5))
    ]
    assert count(ops.mbconv_chain, meta(3, 6, 8, 10), [block, block]) == sum(each)


def test_flops_of_a_stem():
    frames = torch.empty(3, 7, 10, 3, device="meta", dtype=torch.uint8)
    weights = meta(3), meta(3), meta(5, 3, 3, 3), meta(5)
    assert count(ops.stem, frames, *weights, size=(8, 10), stride=2, padding=(0, 1, 0, 1)) == 2 * 3 * 4 * 5 * 5 * 27


def test_flops_of_1x1_convolutions():
    xs, weights = [meta(3, 6, 8, 10), meta(1, 4, 2, 3)], [meta(5, 6), meta(7, 4)]
    found = count(ops.pointwise_conv, xs, weights, [meta(5), meta(7)], activations="relu")
    assert found == 2 * (3 * 80 * 6 * 5 + 6 * 4 * 7)


@pytest.mark.parametrize("reduced", [None, 4])
def test_flops_of_a_context_head(reduced):
    kept, sizes = reduced or 6, (5 * 7, 3 * 4, 2 * 2)
    down = [meta(kept, kept, 2, 2), meta(kept, kept, 2, 2)]
    up, biases = [meta(kept, 2 * kept), meta(kept, 2 * kept)], [meta(kept), meta(kept)]
    reduce = (meta(reduced, 6), meta(reduced)) if reduced else (None, None)
    found = count(ops.context_head, meta(3, 6, 5, 7), *reduce, down, biases, up, biases)
    halving = (sizes[1] + sizes[2]) * 4 * kept * kept
    rising = (sum(sizes[1:]) if reduced else sum(sizes[:2])) * 2 * kept * kept
    assert found == 2 * 3 * (halving + rising + (sizes[0] * 6 * reduced if reduced else 0))


def test_calls_on_real_tensors_count_once():
    """Count the operator, but not the PyTorch operators that the reference calls."""
    x, weights = torch.randn(1, 4, 4, 4), torch.randn(1, 2, 2, 12)
    assert count(ops.patch_conv2d, x, weights, out_channels=3) == 2 * 16 * 12


def test_training_can_be_counted():
    """The backward runs under the counter and is not counted."""
    x = torch.randn(1, 4, 4, 4, requires_grad=True)
    weights = torch.randn(1, 2, 2, 12, requires_grad=True)
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)

    def step():
        ops.patch_conv2d(x, weights, out_channels=3).sum().backward()
        ops.upsample_cross_entropy(logits, torch.zeros(1, 8, 8, dtype=torch.int64), bootstrap=9).backward()

    assert count(step) == 2 * 16 * 12
    assert all(t.grad.isfinite().all() for t in (x, weights, logits))
