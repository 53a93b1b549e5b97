"""EfficientNet as in the official code: SPEC B."""

import pytest
import timm
import torch
from torch import nn

from hyperseg.models import model_config
from hyperseg.models.encoder import Encoder, StaticSameConv2d
from tests.models.networks import images, network

# The other networks have the same encoders, except for the feature reduction.
B1, B3 = "hyperseg-s-camvid", "hyperseg-l-voc"
REPEATS = {B1: [2, 3, 3, 4, 4, 5, 2], B3: [2, 3, 3, 5, 5, 6, 2]}
CHANNELS = {B1: [16, 24, 40, 80, 112, 192, 320], B3: [24, 32, 48, 96, 136, 232, 384]}
EVEN, ODD, BOTH = (0, 1, 0, 1), (1, 2, 1, 2), (2, 2, 2, 2)
# SPEC B.2: (left, right, top, bottom) of the stem (-1) and of the blocks that halve the map.
PADDING = {
    B1: {-1: EVEN, 2: EVEN, 5: ODD, 8: EVEN, 16: BOTH},
    B3: {-1: EVEN, 2: EVEN, 5: BOTH, 8: EVEN, 18: BOTH},
}
SQUEEZED = {
    B1: [8, 4, 4, 6, 6, 6, 10, 10, 10, 20, 20, 20, 20, 28, 28, 28, 28, 48, 48, 48, 48, 48, 80],
    B3: [10, 6, 6, 8, 8, 8, *[12] * 3, *[24] * 5, *[34] * 5, *[58] * 6, 96],
}
encoders = pytest.mark.parametrize("name", [pytest.param(B1, id="b1"), pytest.param(B3, id="b3")])


def blocks(name):
    return [block for stage in network(name).encoder.trunk.blocks for block in stage]


@encoders
def test_stages(name):
    trunk = network(name).encoder.trunk
    assert [len(stage) for stage in trunk.blocks] == REPEATS[name]
    outputs = [getattr(stage[-1], "conv_pwl", None) or stage[-1].conv_pw for stage in trunk.blocks]
    assert [conv.out_channels for conv in outputs] == CHANNELS[name]
    assert trunk.conv_stem.out_channels == {B1: 32, B3: 40}[name]
    assert trunk.conv_head.out_channels == {B1: 1280, B3: 1536}[name]
    kernels = [stage[0].conv_dw.kernel_size[0] for stage in trunk.blocks]
    strides = [stage[0].conv_dw.stride[0] for stage in trunk.blocks]
    assert (kernels, strides) == ([3, 3, 5, 3, 5, 5, 3], [1, 2, 2, 2, 1, 2, 1])


@encoders
def test_static_padding(name):
    trunk = network(name).encoder.trunk
    assert trunk.conv_stem.static_padding == PADDING[name][-1]
    for i, block in enumerate(blocks(name)):
        same = block.conv_dw.kernel_size[0] // 2
        assert isinstance(block.conv_dw, StaticSameConv2d)
        assert block.conv_dw.static_padding == PADDING[name].get(i, (same,) * 4), f"block {i}"
        assert (block.conv_dw.stride[0] == 2) == (i in PADDING[name])


@pytest.mark.parametrize("size", [31, 32, 33, 62, 63])
@pytest.mark.parametrize(("padding", "up"), [(EVEN, False), (ODD, False), (BOTH, True)], ids=lambda value: str(value))
def test_output_sizes_of_static_padding(padding, up, size):
    """Paddings (0, 1) and (1, 2) halve to floor(n / 2), (2, 2) to ceil(n / 2)."""
    kernel = 3 if padding == EVEN else 5
    conv = StaticSameConv2d(nn.Conv2d(1, 1, kernel, stride=2, bias=False), padding)
    assert conv(torch.zeros(1, 1, size, size)).shape[2] == (size + up) // 2


@encoders
def test_squeeze_and_excitation_widths(name):
    assert [block.se.conv_reduce.out_channels for block in blocks(name)] == SQUEEZED[name]


@encoders
def test_norms(name):
    """The whole encoder has eps 1e-3 and momentum 0.01, the rest PyTorch's defaults."""
    model = network(name)
    kinds = {
        part: {(m.eps, m.momentum) for m in module.modules() if isinstance(m, nn.BatchNorm2d)}
        for part, module in model.named_children()
    }
    assert kinds == {"encoder": {(1e-3, 0.01)}, "context": {(1e-5, 0.1)}, "decoder": {(1e-5, 0.1)}}


@encoders
def test_drop_connect_probabilities(name):
    """0.2 j / n for block j, in blocks with a skip connection; block 0 never drops."""
    found = blocks(name)
    for j, block in enumerate(found):
        probability = getattr(block.drop_path, "drop_prob", 0.0)
        assert probability == pytest.approx(0.2 * j / len(found)), f"block {j}"
    first = [sum(REPEATS[name][:i]) for i in range(7)]
    assert [j for j, block in enumerate(found) if not block.has_skip] == first


def test_drop_connect_drops_whole_images_and_scales_the_others():
    block = blocks(B1)[21 + 1]
    x = images(4, 4, batch=64)[:, :1].repeat(1, 320, 1, 1)
    with torch.no_grad():
        branch = block(x) - x
        block.drop_path.train()
        try:
            torch.manual_seed(0)
            dropped = block(x) - x
        finally:
            block.drop_path.eval()
    probability = 0.2 * 22 / 23
    kept = dropped.abs().amax((1, 2, 3)) > 0
    assert 0 < (~kept).sum() < 32
    torch.testing.assert_close(dropped[kept], branch[kept] / (1 - probability), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("name", "probability"), [(B1, 0.2), (B3, 0.3)], ids=["b1", "b3"])
def test_dropout_of_single_elements_of_the_head_map_in_training_only(name, probability):
    encoder = network(name).encoder
    assert encoder.head_dropout.p == probability
    x = images(64, 64)
    with torch.no_grad():
        _, head = encoder(x)
        _, again = encoder(x)
        assert torch.equal(head, again)
        encoder.head_dropout.train()
        try:
            torch.manual_seed(0)
            _, dropped = encoder(x)
        finally:
            encoder.head_dropout.eval()
    zero = dropped == 0
    assert zero.float().mean().item() == pytest.approx(probability, abs=0.03)
    assert zero.any(1).sum() > 1, "elements are dropped, not channels"
    torch.testing.assert_close(dropped[~zero], head[~zero] / (1 - probability))


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("hyperseg-s-camvid", (4, 6, 10, 28, 80)),
        ("hyperseg-l-camvid", (4, 6, 10, 28, 80)),
        ("hyperseg-m-cityscapes", (16, 6, 10, 28, 80)),
        ("hyperseg-s-cityscapes", (16, 4, 8, 28, 128)),
        ("hyperseg-l-voc", (6, 8, 12, 34, 96)),
    ],
)
def test_features(name, channels):
    """SPEC B.3: strides 2 to 32, and the head map."""
    with torch.inference_mode():
        features, head = network(name).encoder(images(64, 96))
    assert tuple(f.shape[1] for f in features) == channels
    assert [tuple(f.shape[2:]) for f in features] == [(64 // s, 96 // s) for s in (2, 4, 8, 16, 32)]
    assert head.shape == (1, 1536 if name == "hyperseg-l-voc" else 1280, 2, 3)
    # Features that have the configured channels already are not reduced.
    identity = isinstance(network(name).encoder.reduce[0], nn.Identity)
    assert identity == name.endswith("cityscapes")


def timm_features(name, x):
    """Features of plain timm with the weights of our encoder."""
    encoder = network(name).encoder
    plain = timm.create_model(model_config(name).encoder, features_only=True).eval()
    result = plain.load_state_dict(encoder.trunk.state_dict(), strict=False)
    assert result.missing_keys == []
    assert all(key.startswith(("conv_head", "bn2")) for key in result.unexpected_keys)
    with torch.inference_mode():
        return plain(x), encoder.trunk(x)[0]


def worst(expected, actual):
    return [((a - b).abs().max() / a.abs().max()).item() for a, b in zip(expected, actual, strict=True)]


@pytest.mark.parametrize(("name", "nominal"), [(B1, 240), (B3, 300)], ids=["b1", "b3"])
def test_equals_plain_timm_at_the_nominal_size(name, nominal):
    assert max(worst(*timm_features(name, images(nominal, nominal)))) < 1e-5


@pytest.mark.parametrize(("name", "agreeing"), [(B1, 4), (B3, 2)], ids=["b1", "b3"])
def test_differs_from_plain_timm_at_other_sizes(name, agreeing):
    """5x5 convolutions padded by 2 on all sides are shifted by one pixel (SPEC B.2)."""
    errors = worst(*timm_features(name, images(128, 256)))
    assert max(errors[:agreeing]) < 1e-5
    assert min(errors[agreeing:]) > 1e-3


def test_static_padding_of_other_efficientnets():
    """The padding follows from the configuration's nominal size."""
    encoder = Encoder(model_config(B1).replace(encoder="tf_efficientnet_b0", static_padding_size=224))
    halving = [
        block.conv_dw.static_padding
        for stage in encoder.trunk.blocks
        for block in stage
        if block.conv_dw.stride[0] == 2
    ]
    assert halving == [EVEN, ODD, EVEN, ODD]
