"""Images of any size."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from hyperseg.models import HyperSegConfig, model_config
from hyperseg.models.sizes import normalise, pad
from hyperseg.ops._layout import resize_logits
from tests.models.networks import KINDS, NAMES, images, network, relative_rms


def config(one_more: bool) -> HyperSegConfig:
    """Return the configuration of a network that takes (or not) one pixel more than a multiple of 32."""
    return model_config("hyperseg-s-camvid" if one_more else "hyperseg-l-camvid")


def sizes(*listed):
    return pytest.mark.parametrize("size", listed, ids=lambda size: f"{size[0]}x{size[1]}")


@pytest.mark.parametrize(
    ("size", "one_more", "expected"),
    [
        ((64, 64), True, (64, 64)),
        ((1, 1), True, (32, 32)),
        ((33, 57), True, (33, 64)),
        ((33, 57), False, (64, 64)),
        ((65, 65), True, (65, 65)),
        ((65, 65), False, (96, 96)),
        ((129, 193), True, (129, 193)),
        ((577, 769), True, (577, 769)),
        ((577, 769), False, (608, 800)),
        ((720, 960), True, (736, 960)),
        ((375, 500), True, (384, 512)),
        ((1080, 1920), True, (1088, 1920)),
        ((1024, 2048), False, (1024, 2048)),
    ],
)
def test_padded_size(size, one_more, expected):
    assert config(one_more).padded_size(size) == expected


def test_padded_size_of_every_side():
    for side, one_more in itertools.product(range(1, 300), (False, True)):
        padded = config(one_more).padded_size((side, 64))[0]
        assert side <= padded < side + 32
        assert padded % 32 == 0 or (one_more and padded % 32 == 1)


@pytest.mark.parametrize(
    ("name", "takes"),
    [
        ("hyperseg-s-camvid", True),
        ("hyperseg-l-camvid", False),
        ("hyperseg-m-cityscapes", True),
        ("hyperseg-s-cityscapes", True),
        ("hyperseg-l-voc", False),
    ],
)
def test_only_five_level_networks_take_one_pixel_more(name, takes):
    """SPEC C.3: they take 577x769 without padding, and their last resize handles the odd size."""
    x, padded = images(129, 193), model_config(name).padded_size((129, 193))
    assert (padded == (129, 193)) == takes
    assert (pad(x, padded) is x) == takes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("kind", [tuple, torch.tensor], ids=["tuple", "tensor"])
def test_normalise(kind, dtype):
    mean, std = kind((0.485, 0.456, 0.406)), kind((0.229, 0.224, 0.225))
    frames = torch.randint(256, (2, 5, 4, 3), dtype=torch.uint8)
    for view in (
        frames,
        torch.cat([frames, frames], 2)[:, :, :4],
        frames.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0),
    ):
        found = normalise(view, mean, std, dtype)
        assert found.is_contiguous(memory_format=torch.channels_last)
        expected = (frames / 255 - torch.tensor(list(mean))) / torch.tensor(list(std))
        torch.testing.assert_close(found, expected.to(dtype).permute(0, 3, 1, 2))


@sizes((1, 1), (33, 57), (64, 64), (65, 65), (129, 193))
@pytest.mark.parametrize("name", NAMES)
def test_logits_at_image_size(name, size):
    model = network(name)
    x = images(*size, batch=2)
    with torch.inference_mode():
        logits = model(x)
    assert logits.shape == (2, model.config.num_classes, *size)
    assert logits.isfinite().all()


@sizes((1, 1), (31, 97), (40, 65))
@pytest.mark.parametrize("name", KINDS)
def test_padding_is_of_the_image_and_cut_from_the_logits(name, size):
    """The padding repeats the last row and column at the bottom and the right."""
    model = network(name)
    x = images(*size)
    height, width = model.config.padded_size(size)
    with torch.inference_mode():
        padded = F.pad(x, (0, width - size[1], 0, height - size[0]), mode="replicate")
        assert torch.equal(model(x), model(padded)[:, :, : size[0], : size[1]])


@sizes((64, 96), (65, 97), (96, 33))
def test_native_sizes_are_not_padded(size):
    model = network("hyperseg-s-camvid")
    x = images(*size)
    with torch.inference_mode():
        features, head = model.encoder(x)
        assert [f.shape[2] for f in features] == [size[0] // s for s in (2, 4, 8, 16, 32)]
        logits = model.decoder(model.context(head), features, x)
        assert torch.equal(model.forward_strided(x), logits)
        assert torch.equal(model(x), resize_logits(logits, *size))


@pytest.mark.parametrize("name", NAMES)
def test_images_of_a_batch_are_independent(name):
    model = network(name)
    first, second, third = images(64, 96, batch=3).split(1)
    with torch.inference_mode():
        pair = model(torch.cat([first, second]))
        assert torch.equal(pair[:1], model(torch.cat([first, third]))[:1])
        assert relative_rms(pair[:1], model(first)) < 1e-4
        assert relative_rms(pair[1:], model(second)) < 1e-4
        assert relative_rms(pair[1:], pair[:1]) > 1e-2


@pytest.mark.parametrize("name", KINDS)
def test_channels_last_memory(name):
    model = network(name)
    x = images(65, 70)
    with torch.inference_mode():
        logits = model(x.contiguous(memory_format=torch.channels_last))
        assert relative_rms(logits, model(x)) < 1e-4


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), TypeError, "floating point, normalised .* got torch.uint8"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.int64), TypeError, "got torch.int64"),
        (torch.zeros(3, 64, 64), ValueError, r"Images must be \[N, 3, H, W\], got \[3, 64, 64\]"),
        (torch.zeros(64), ValueError, r"Images must be \[N, 3, H, W\], got \[64\]"),
        (torch.zeros(()), ValueError, r"Images must be \[N, 3, H, W\], got \[\]"),
        (torch.zeros(1, 4, 64, 64), ValueError, r"got \[1, 4, 64, 64\]"),
        (torch.zeros(1, 64, 64, 3), ValueError, r"got \[1, 64, 64, 3\]"),
        (torch.zeros(0, 3, 64, 64), ValueError, r"got \[0, 3, 64, 64\]"),
        (torch.zeros(1, 3, 0, 64), ValueError, r"got \[1, 3, 0, 64\]"),
    ],
    ids=["uint8", "int64", "3d", "1d", "0d", "4-channels", "channels-last", "no-images", "no-rows"],
)
def test_invalid_images(bad, error, message):
    with pytest.raises(error, match=message):
        network("hyperseg-s-camvid")(bad)


@pytest.mark.slow
@sizes((720, 960), (375, 500), (1080, 1920), (33, 57))
@pytest.mark.parametrize("name", NAMES)
def test_sizes_that_the_official_code_rejects(name, size):
    with torch.inference_mode():
        logits = network(name)(images(*size))
    assert logits.shape == (1, network(name).config.num_classes, *size)
    assert logits.isfinite().all()
    # The official v0_1 fills the far border with a constant (SPEC C.3).
    assert logits[:, :, -1].std(2).min() > 0
    assert logits[:, :, :, -1].std(2).min() > 0


@pytest.mark.parametrize("name", ["hyperseg-s-camvid", "hyperseg-m-cityscapes"])
def test_the_size_of_a_camera_image(name):
    with torch.inference_mode():
        logits = network(name)(images(375, 500))
    assert logits.shape == (1, network(name).config.num_classes, 375, 500)
    assert logits.isfinite().all()
