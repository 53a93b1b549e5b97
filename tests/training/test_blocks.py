"""Blocks that keep the outputs of convolutions only: results, gradients, statistics and memory against plain blocks."""

import copy

import pytest
import torch
from timm.models._efficientnet_blocks import DepthwiseSeparableConv, InvertedResidual, SqueezeExcite
from torch import nn

import hyperseg
from hyperseg.models.encoder import StaticSameConv2d
from hyperseg.training import convolutions
from hyperseg.training.blocks import lean_blocks, norm_act_conv
from hyperseg.training.config import SpeedConfig
from hyperseg.training.network import prepare, train_mode

SIZE = (13, 18)
WIDE = 24  # channels inside a block with 6


@pytest.fixture(autouse=True)
def all_forms(monkeypatch):
    """Convolutions of small maps take the forms that are for large ones."""
    monkeypatch.setattr(convolutions, "_LEAST_PIXELS_OF_PART", 1)
    monkeypatch.setattr(convolutions, "_LEAST_PRODUCTS", 1)
    monkeypatch.setattr(convolutions, "_LEAST_PIXELS_OF_HALVES", 1)


class Holder(nn.Module):
    """What lean_blocks takes: an encoder with blocks in it."""

    def __init__(self, *blocks):
        super().__init__()
        self.encoder = nn.Sequential(*blocks)


def squeeze(channels, act_layer, **_):
    return SqueezeExcite(channels, act_layer=act_layer)


def inverted(act=nn.SiLU, se=squeeze, kernel=3, stride=1, padding="", drop=0.0):
    return InvertedResidual(
        6, 6, kernel, stride, pad_type=padding, exp_ratio=3, act_layer=act, se_layer=se, drop_path_rate=drop
    )


def separable(act=nn.SiLU, se=squeeze, out=6):
    return DepthwiseSeparableConv(6, out, 3, act_layer=act, se_layer=se)


def static(block, padding):
    block.conv_dw = StaticSameConv2d(block.conv_dw, padding)
    return block


BLOCKS = {
    "silu": inverted,
    "five": lambda: inverted(kernel=5),
    "five, stride 2": lambda: inverted(kernel=5, stride=2),
    "relu": lambda: inverted(nn.ReLU),
    "relu6, no gate": lambda: inverted(nn.ReLU6, None),
    "hardswish": lambda: inverted(nn.Hardswish, None, kernel=5),
    "unequal padding": lambda: static(inverted(stride=2), (0, 1, 1, 2)),
    "five, unequal padding": lambda: static(inverted(kernel=5, stride=2), (1, 2, 2, 1)),
    "equal static padding": lambda: static(inverted(kernel=5), (2, 2, 2, 2)),
    "separable": separable,
    "separable, no skip, no gate": lambda: separable(nn.ReLU6, None, out=4),
}


def randomise(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for tensor in [*module.parameters(), *module.buffers()]:
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            positive = tensor.dim() == 1 and bool((tensor > 0).all())
            tensor.data.copy_(0.5 + noise.abs() if positive else 0.4 * noise)
    return module


def images(dtype, n=2, size=SIZE, seed=1):
    x = torch.randn(n, 6, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x.to(dtype, memory_format=torch.channels_last)


def run(block, x):
    """Return the output, the gradients of input and parameters, and the buffers after one pass."""
    leaf = x.detach().requires_grad_()
    y = block(leaf)
    y.mul(torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    return y.detach(), [leaf.grad, *(p.grad for p in block.parameters())], [b.clone() for b in block.buffers()]


def assert_equal(found, expected, **tolerance):
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, **tolerance)


@pytest.mark.parametrize("frozen", [False, True], ids=["", "frozen"])
@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_computes_what_it_did(name, frozen):
    torch.manual_seed(0)
    plain = randomise(BLOCKS[name]().double()).to(memory_format=torch.channels_last)
    train_mode(plain, frozen)
    lean = copy.deepcopy(plain)
    assert lean_blocks(Holder(lean)) == 1
    x = images(torch.float64)
    (y, gradients, buffers), (y2, gradients2, buffers2) = run(plain, x), run(lean, x)
    torch.testing.assert_close(y2, y, rtol=1e-12, atol=1e-12)
    assert_equal(gradients2, gradients, rtol=1e-9, atol=1e-9)
    assert_equal(buffers2, buffers, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("size", [(8, 16), (5, 7), (17, 3)], ids=str)
def test_float32_with_any_number_of_threads(size, threads):
    """With one thread the pixels of 1x1 convolutions are divided into more images."""
    plain = randomise(inverted(kernel=5).double()).to(memory_format=torch.channels_last)
    lean = copy.deepcopy(plain).float()
    lean_blocks(Holder(lean))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = run(lean, images(torch.float32, size=size))
    finally:
        torch.set_num_threads(before)
    y, gradients, _ = run(plain, images(torch.float64, size=size))
    torch.testing.assert_close(found[0].double(), y, rtol=1e-4, atol=1e-4)
    for one, two in zip(found[1], gradients, strict=True):
        torch.testing.assert_close(one.double(), two, rtol=1e-3, atol=2e-4 * two.abs().max().item())


def test_gradcheck():
    block = randomise(inverted(kernel=5).double())
    x = images(torch.float64, n=1, size=(4, 5)).requires_grad_()
    lean_blocks(Holder(block))
    parameters = [x, *block.parameters()]
    assert torch.autograd.gradcheck(lambda *_: block(x), parameters, atol=1e-6, rtol=1e-4)


def test_autocast():
    """Norms and gates stay as precise as in the plain block, maps are bfloat16."""
    plain = randomise(inverted()).to(memory_format=torch.channels_last)
    lean = copy.deepcopy(plain)
    lean_blocks(Holder(lean))
    exact = run(copy.deepcopy(plain), images(torch.float32))
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = run(lean, images(torch.float32)), run(plain, images(torch.float32))
    assert found[0].dtype == expected[0].dtype
    for mine, theirs, right in zip(
        [found[0], *found[1]], [expected[0], *expected[1]], [exact[0], *exact[1]], strict=True
    ):
        allowed = 1.5 * (theirs.float() - right).norm() + 0.02 * right.norm()
        assert (mine.float() - right).norm() <= allowed


def test_only_outputs_of_convolutions_are_kept():
    """Two wide maps and two narrow ones, and the norms' small tensors, where the plain block keeps seven wide ones."""
    kept = {}
    for name in ("plain", "lean"):
        block = inverted()
        if name == "lean":
            lean_blocks(Holder(block))
        found: dict[int, torch.Tensor] = {}

        def note(t, found=found):
            found[t.untyped_storage().data_ptr()] = t
            return t

        x = images(torch.float32, size=(32, 32)).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            y = block(x)
        kept[name] = sum(t.untyped_storage().nbytes() for t in found.values()) / x.nbytes
        y.sum().backward()
    expansion = WIDE / 6
    assert kept["lean"] < 2 * expansion + 2 + 0.5
    assert kept["plain"] > 6 * expansion


def test_eval_mode_and_no_gradients_run_as_before():
    plain = randomise(inverted())
    lean = copy.deepcopy(plain)
    lean_blocks(Holder(lean))
    with torch.no_grad():
        assert torch.equal(lean(images(torch.float32)), plain(images(torch.float32)))
    assert torch.equal(lean.eval()(images(torch.float32)), plain.eval()(images(torch.float32)))


def test_a_copy_is_a_block_of_its_own():
    block = randomise(inverted())
    lean_blocks(Holder(block))
    other = copy.deepcopy(block)
    with torch.no_grad():
        other.conv_pwl.weight.zero_()
        other.bn3.bias.zero_()
    x = images(torch.float32)
    torch.testing.assert_close(other(x), x)
    assert not torch.equal(block(x), x)


@pytest.mark.parametrize(
    "change",
    [
        lambda b: setattr(b.bn1, "act", nn.GELU()),
        lambda b: setattr(b, "bn2", nn.Sequential(nn.BatchNorm2d(WIDE), nn.SiLU())),
        lambda b: setattr(b, "conv_dw", nn.Conv2d(WIDE, WIDE, 3, padding=2, dilation=2, groups=WIDE, bias=False)),
        lambda b: setattr(b, "conv_pwl", nn.Conv2d(WIDE, 6, 1)),
        lambda b: setattr(b.se, "gate", nn.Hardsigmoid()),
        lambda b: setattr(b, "aa", nn.AvgPool2d(1)),
        lambda b: setattr(b.bn1, "drop", nn.Dropout(0.1)),
    ],
    ids=["activation", "norm", "dilation", "bias", "gate", "anti-aliasing", "dropout"],
)
def test_a_block_with_other_parts_stays_as_it_is(change):
    block = inverted()
    change(block)
    assert lean_blocks(Holder(block)) == 0
    assert "forward" not in vars(block)


@pytest.mark.parametrize("name", ["tf_efficientnet_b1", "tf_efficientnet_b3", "tf_efficientnet_lite0"])
def test_all_blocks_of_the_published_encoders_are_known(name):
    network = hyperseg.create_model("hyperseg-s-camvid", encoder=name, static_padding_size=224)
    blocks = sum(type(m) in (InvertedResidual, DepthwiseSeparableConv) for m in network.modules())
    assert lean_blocks(network) == blocks > 0


def test_an_encoder_without_such_blocks():
    assert lean_blocks(hyperseg.create_model("hyperseg-s-camvid", encoder="resnet18")) == 0


def test_a_convolution_with_string_padding_is_not_known():
    block = inverted()
    block.conv_dw.padding = "same"
    assert lean_blocks(Holder(block)) == 0


def test_recomputed_blocks_keep_their_statistics():
    """Stages that are computed again count a batch once, with lean blocks inside too."""
    networks = []
    for recompute in (False, True):
        torch.manual_seed(0)
        network = hyperseg.create_model("hyperseg-s-camvid", encoder="tinynet_e", static_padding_size=96).double()
        train_mode(network, freeze_norms=False)
        module = prepare(network, SpeedConfig(recompute=recompute))
        x = torch.randn(2, 3, 64, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        torch.manual_seed(1)
        module(x).square().mean().backward()
        networks.append(network)
    one, two = networks
    assert_equal(two.buffers(), one.buffers(), rtol=1e-12, atol=1e-14)
    for (name, a), b in zip(one.named_parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-6, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}")


def test_a_norm_and_a_convolution_alone():
    """The function for blocks of one's own."""
    block = randomise(inverted().double())
    x = torch.randn(2, WIDE, 7, 9, dtype=torch.float64)
    expected = block.conv_dw(copy.deepcopy(block.bn1)(x))
    torch.testing.assert_close(norm_act_conv(x, block.bn1, None, block.conv_dw), expected)
