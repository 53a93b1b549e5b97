"""Samples depend on the seed and their number alone, and a step's on nothing else."""

import numpy as np
import pytest

from hyperseg.data.pipeline.samples import Draws, Sampler


def philox(key: tuple[int, int], counter: list[int]) -> list[int]:
    """One block of Philox4x64-10, from its definition (Salmon et al., 2011)."""
    mask = 2**64 - 1
    x, (low, high) = list(counter), key
    for _ in range(10):
        products = 0xD2E7470EE14C6C93 * x[0], 0xCA5A826395121157 * x[2]
        x = [products[1] >> 64 ^ x[1] ^ low, products[1] & mask, products[0] >> 64 ^ x[3] ^ high, products[0] & mask]
        low, high = (low + 0x9E3779B97F4A7C15) & mask, (high + 0xBB67AE8584CAA73B) & mask
    return x


@pytest.mark.parametrize(("seed", "number"), [(0, 0), (1, 2), (2**64 - 1, 12345), (7, 2**40)])
def test_draws_are_those_of_philox(seed, number):
    blocks = [philox((seed, number), [block, 0, 0, 0]) for block in range(1, 5)]
    expected = [(value >> 11) / 2**53 for block in blocks for value in block]
    sample = Sampler(1000, seed).sample(number)
    assert list(sample.draws) == expected[: len(Draws._fields)]
    assert sample.image == int(expected[0] * 1000)
    assert sample.number == number


def test_images_are_uniform_with_replacement():
    counts = np.bincount([Sampler(20, 3).sample(k).image for k in range(4000)], minlength=20)
    assert counts.min() > 0
    chi_square = ((counts - 200) ** 2 / 200).sum()
    assert 7 < chi_square < 37  # 99 % of the distribution with 19 degrees of freedom
    first = [Sampler(20, 3).sample(k).image for k in range(20)]
    assert len(set(first)) < 20
    assert first != [Sampler(20, 4).sample(k).image for k in range(20)]


def test_a_permutation_has_each_image_once_per_epoch():
    sampler = Sampler(17, 5, "permutation")
    epochs = [[sampler.sample(17 * epoch + k).image for k in range(17)] for epoch in range(4)]
    assert all(sorted(epoch) == list(range(17)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    # Also in any order of asking, and with the draws of the other order.
    assert sampler.sample(20).image == epochs[1][3]
    assert sampler.sample(20).draws == Sampler(17, 5).sample(20).draws


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 12])
def test_the_samples_of_a_step_do_not_depend_on_the_processes(world_size):
    for step in (0, 1, 700):
        numbers = [k for rank in range(world_size) for k in Sampler.batch(step, rank, world_size, 12)]
        assert sorted(numbers) == list(range(12 * step, 12 * step + 12))
        assert {len(Sampler.batch(step, rank, world_size, 12)) for rank in range(world_size)} == {12 // world_size}


def test_batches_begin_at_any_step():
    sampler = Sampler(5)
    assert list(sampler.batches(3, 2, 1, 2, 4)) == [range(13, 16, 2), range(17, 20, 2)]
    endless = sampler.batches(1_000_000, None, 0, 1, 4)
    assert [next(endless) for _ in range(2)] == [range(4_000_000, 4_000_004), range(4_000_004, 4_000_008)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Sampler(0), "the data set has 0 images"),
        (lambda: Sampler(3, -1), "the seed is -1; give 0 to"),
        (lambda: Sampler(3, 2**64), "give 0 to 2\\^64 - 1"),
        (lambda: Sampler(3, 0, "shuffle"), "no order 'shuffle'; give replacement or permutation"),
        (lambda: Sampler.batch(0, 2, 2, 4), "rank 2 of 2 processes; ranks are 0 to 1"),
        (lambda: Sampler.batch(0, 0, 3, 4), "a batch of 4 cannot be divided among 3 processes; give a multiple of 3"),
        (lambda: Sampler.batch(0, 0, 1, 0), "a batch of 0"),
    ],
)
def test_arguments_out_of_range(call, message):
    with pytest.raises(ValueError, match=message):
        call()
