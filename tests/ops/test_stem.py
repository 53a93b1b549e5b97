"""Tests of ``stem`` alone: the encoder's stem, layouts of frames, padding, rounding and large frames."""

import pytest
import torch
from torch import nn

from hyperseg import ops
from hyperseg.models.encoder import EfficientNetTrunk
from hyperseg.models.registry import model_config
from hyperseg.models.sizes import pad
from hyperseg.ops import reference
from hyperseg.runtime.folding import fold_efficientnet
from hyperseg.runtime.fused_blocks import FusedStem, fusible_stem
from tests.ops import cases
from tests.ops.targets import able
from tests.tolerances import FORWARD, assert_close

ABLE = able("stem")
KERNELS = [p for p in ABLE if p.values[0].backend != "reference"]
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]) * 255, torch.tensor([0.229, 0.224, 0.225]) * 255


def random_frames(n: int, h: int, w: int) -> torch.Tensor:
    return torch.randint(256, (n, h, w, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def trunk(name: str = "efficientnet_b0") -> EfficientNetTrunk:
    torch.manual_seed(0)
    net = EfficientNetTrunk(name, None, 0.0, 64).eval().requires_grad_(False)
    fold_efficientnet(net)
    return net


@pytest.mark.parametrize("network", ["hyperseg-l-camvid", "hyperseg-s-camvid"])
@pytest.mark.parametrize("size", [(64, 96), (33, 65), (40, 70)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_the_operator_matches_the_stem_of_the_encoder(size, network):
    net, frames, padded = trunk(), random_frames(2, *size), model_config(network).padded_size(size)
    images = (frames.permute(0, 3, 1, 2) - MEAN[:, None, None]) / STD[:, None, None]
    expected = net.bn1(net.conv_stem(pad(images, padded)))
    assert fusible_stem(net)
    found = FusedStem(net.conv_stem)(frames, 1 / STD, -MEAN / STD, padded)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_stems_with_another_activation_are_not_fused():
    net = trunk()
    net.bn1 = nn.ReLU6()
    assert not fusible_stem(net)


def test_the_default_size_is_the_size_of_the_frames():
    frames, weights = random_frames(1, 9, 8), (torch.ones(3), torch.zeros(3), torch.ones(4, 3, 3, 3), torch.zeros(4))
    assert torch.equal(ops.stem(frames, *weights), ops.stem(frames, *weights, size=(9, 8)))
    assert ops.stem(frames, *weights, size=(32, 32)).shape == (1, 4, 30, 30)


def test_derivatives_raise_an_error():
    weight = torch.randn(4, 3, 3, 3, requires_grad=True)
    y = ops.stem(random_frames(1, 8, 8), torch.ones(3), torch.zeros(3), weight, torch.zeros(4))
    with pytest.raises(NotImplementedError, match="stem: this operator is for inference"):
        y.sum().backward()


@pytest.mark.parametrize("target", ABLE)
def test_zeros_surround_the_normalised_image(target):
    """Black frames have normalised values far from 0, so the sums at the border show that the padding is 0."""
    frames = torch.zeros(1, 6, 8, 3, dtype=torch.uint8, device=target.device)
    one = torch.ones(3, device=target.device)
    args = frames, one, one, torch.ones(8, 3, 3, 3, device=target.device), torch.zeros(8, device=target.device)
    y = target.run("stem", (*args, 7, 9, 2, [1, 1, 1, 1]))
    seen = torch.tensor([2, 3, 3, 3, 2.0])[None, :] * torch.tensor([2, 3, 3, 2.0])[:, None] * 3
    torch.testing.assert_close(y[0, 0].cpu(), torch.nn.functional.silu(seen))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=lambda t: str(t)[6:])
@pytest.mark.parametrize("target", KERNELS)
def test_outputs_are_bitwise_equal_for_every_layout_of_frames(target, dtype):
    frames = random_frames(2, 11, 144).to(target.device)  # rows of whole 4-byte words, two tiles, repeated columns
    affine = (1 / STD).to(target.device), (-MEAN / STD).to(target.device)
    weight = torch.randn(16, 3, 3, 3, generator=torch.Generator().manual_seed(1)).to(target.device, dtype)
    args = *affine, weight, weight[:, 0, 0, 0].contiguous(), 12, 148, 2, [0, 1, 0, 1]
    expected = target.run("stem", (frames, *args))
    for name in ("cut", "planar", "transposed"):
        view = cases.convert(cases.LAYOUTS[name](frames.cpu()), device=target.device)
        assert torch.equal(target.run("stem", (view, *args)), expected)
    last = weight.contiguous(memory_format=torch.channels_last)
    assert torch.equal(target.run("stem", (frames, *affine, last, *args[3:])), expected)


@pytest.mark.parametrize("target", ABLE)
def test_normalised_values_are_rounded_to_the_dtype_of_the_weight(target):
    """The output in float16 equals that of a separate normalisation, whose image is float16."""
    values = torch.arange(0, 256, 32, dtype=torch.uint8)
    frames = values.view(1, 1, 8, 1).expand(1, 1, 8, 3).to(target.device)
    scale, shift = (1 / STD).to(target.device), (-MEAN / STD).to(target.device)
    weight = torch.zeros(8, 3, 1, 1, dtype=torch.float16, device=target.device)
    weight[:, 0] = 128
    rounded = (values * (1 / STD[0]) - MEAN[0] / STD[0]).half()
    y = target.run("stem", (frames, scale, shift, weight, -128 * rounded.to(target.device), 1, 8, 1, [0, 0, 0, 0]))
    assert y[0, :, 0].diag().count_nonzero() == 0, "a value that was not rounded does not cancel"


# Code of the kernels that only large frames or many channels reach.
LARGE = {
    "several_tiles": cases.stem(2, 32, frame=(37, 270), image=(64, 288)),
    "channels_40": cases.stem(1, 40, frame=(20, 300), image=(32, 320)),
    "channels_1032": cases.stem(1, 1032, frame=(9, 20)),
    "channels_2048": cases.stem(1, 2048, frame=(5, 6)),
}
COMPILED = [p for p in KERNELS if p.values[0].id != "triton-cpu"]  # the interpreter takes seconds for them


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=lambda t: str(t)[6:])
@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("target", COMPILED)
def test_large_frames(target, name, dtype):
    args = cases.Case("stem", name, LARGE[name]).arguments(dtype, target.device)
    y = target.run("stem", args)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert_close("y", y, reference.stem(*cases.double(args)), FORWARD[dtype])
    assert torch.equal(y, target.run("stem", args)), "two equal calls returned different outputs"
