"""Colours against torchvision's ColorJitter functions on float images, one sample at a time; layout and type."""

import itertools

import pytest
import torch
import torchvision.transforms.functional as F

from hyperseg.data.pipeline.jitter import JitterParameters, jitter_parameters
from hyperseg.data.pipeline.photometry import Photometry, jitter_colors, mirror
from hyperseg.data.pipeline.recipes import ColorJitter
from hyperseg.data.pipeline.samples import Sampler

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CHANGES = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
TOLERANCE = {"rtol": 0, "atol": 1e-5}  # of 1; a level of uint8 is 4e-3


def pixels(count, height=9, width=14, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (count, height, width, 3), generator=generator, dtype=torch.uint8)
    images[:, 0] = images[:, 0, :, :1]  # grey: no hue
    images[:, 1, :5], images[:, 1, 5:] = 0, 255
    return images


def one_by_one(images, parameters):
    out = []
    for image, factors, order in zip(images, *parameters, strict=True):
        for kind in order.tolist():
            image = CHANGES[kind](image, float(factors[kind]))
        out.append(image)
    return torch.stack(out)


def normalised(images):
    return torch.stack([F.normalize(image, MEAN, STD) for image in images])


def test_every_order_matches_torchvision():
    orders = torch.tensor(list(itertools.permutations(range(4))))
    generator = torch.Generator().manual_seed(1)
    factors = torch.rand(24, 4, generator=generator) * torch.tensor([2.0, 2.0, 2.0, 1.0]) - torch.tensor([0, 0, 0, 0.5])
    images = pixels(24).permute(0, 3, 1, 2) / 255
    kept = images.clone()
    parameters = JitterParameters(factors, orders)
    torch.testing.assert_close(jitter_colors(images, parameters), one_by_one(images, parameters), **TOLERANCE)
    torch.testing.assert_close(images, kept, rtol=0, atol=0)


def test_parameters_are_in_their_ranges_and_differ():
    jitter = ColorJitter(0.25, 0.5, 2.0, 0.1)
    draws = [Sampler(1, 2).sample(k).draws for k in range(500)]
    factors, order = jitter_parameters(jitter, draws)
    for column, (low, high) in zip(factors.T, [(0.75, 1.25), (0.5, 1.5), (0, 3), (-0.1, 0.1)], strict=True):
        assert low <= column.min() < low + 0.02 * (high - low)
        assert high - 0.02 * (high - low) < column.max() <= high
    assert len({tuple(row) for row in order.tolist()}) == 24
    assert all(sorted(row) == [0, 1, 2, 3] for row in order.tolist())


def test_without_hue_colors_match_torchvision():
    draws = [Sampler(1, 2).sample(k).draws for k in range(6)]
    parameters = jitter_parameters(ColorJitter(0.4, 0.4, 0.4), draws)
    images = pixels(6).permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(jitter_colors(images, parameters), one_by_one(images, parameters), **TOLERANCE)


@pytest.mark.parametrize("jittered", [False, True], ids=["plain", "jitter"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_whole_photometry(jittered, dtype):
    images, flip = pixels(4), torch.tensor([True, False, False, True])
    draws = [Sampler(1, 2).sample(k).draws for k in range(4)]
    parameters = jitter_parameters(ColorJitter(0.3, 0.3, 0.3, 0.3), draws) if jittered else None
    found = Photometry(MEAN, STD, dtype)(images, flip, parameters)
    expected = images.permute(0, 3, 1, 2) / 255
    expected = torch.stack([F.hflip(image) if f else image for image, f in zip(expected, flip, strict=True)])
    expected = normalised(one_by_one(expected, parameters) if jittered else expected)
    assert found.shape == (4, 3, 9, 14)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, expected.to(dtype), rtol=0, atol=5e-5 if dtype == torch.float32 else 2**-6)


def test_padding_keeps_its_color_and_does_not_count():
    images = pixels(3, 8, 10)
    inside = torch.zeros(3, 8, 10, dtype=torch.uint8)
    inside[0, :5, :7], inside[1, 2:, :], inside[2] = 1, 1, 1
    parameters = JitterParameters(
        torch.tensor([[1.2, 0.5, 1.4, 0.2], [0.7, 1.5, 0.6, -0.4], [1.0, 0.2, 1.0, 0.0]]),
        torch.tensor([[1, 0, 2, 3], [3, 2, 1, 0], [0, 1, 2, 3]]),
    )
    flip = torch.tensor([False, True, False])
    found = Photometry((0.0,) * 3, (1.0,) * 3)(images, flip, parameters, inside)
    contents = [images[0, :5, :7], images[1, 2:].flip(1), images[2]]
    for number, (content, place) in enumerate(
        zip(contents, [(slice(5), slice(7)), (slice(2, 8), slice(10)), (slice(8), slice(10))], strict=True)
    ):
        one = JitterParameters(*(values[number : number + 1] for values in parameters))
        expected = one_by_one(content.permute(2, 0, 1)[None] / 255, one)[0]
        torch.testing.assert_close(found[number][(slice(None), *place)], expected, **TOLERANCE)
    torch.testing.assert_close(found[0][:, 5:], images[0, 5:].permute(2, 0, 1) / 255, **TOLERANCE)


def test_mirror():
    labels = torch.arange(24, dtype=torch.uint8).view(2, 3, 4)
    found = mirror(labels, torch.tensor([False, True]))
    assert torch.equal(found, torch.stack([labels[0], labels[1].flip(1)]))
    assert found.dtype == torch.uint8
