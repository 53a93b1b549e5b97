"""Tests of ``mbconv`` alone: blocks of the encoder, large maps and the missing gradient."""

import itertools

import pytest
import timm
import torch

from hyperseg import ops
from hyperseg.models.encoder import EfficientNetTrunk
from hyperseg.ops import reference
from hyperseg.runtime.folding import fold_efficientnet
from hyperseg.runtime.fused_blocks import FusedBlock, fusible
from tests.ops import cases
from tests.ops.targets import targets
from tests.tolerances import FORWARD, assert_close


def trunk(name: str) -> EfficientNetTrunk:
    net = EfficientNetTrunk(name, None, 0.0, 64).eval().requires_grad_(False)
    fold_efficientnet(net)
    return net


def test_the_operator_matches_every_block_of_the_encoder():
    net = trunk("efficientnet_b0")
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    x = net.bn1(net.conv_stem(x))
    for stage in net.blocks:
        for block in stage:
            assert fusible(block)
            expected = block(x)
            torch.testing.assert_close(FusedBlock(block)(x), expected, rtol=1e-4, atol=1e-5)
            x = expected


def test_blocks_with_other_activations_are_not_fused():
    lite = timm.create_model("efficientnet_lite0").blocks[1][0]
    assert not fusible(lite)


def test_derivatives_raise_an_error():
    x = torch.randn(1, 4, 5, 5, requires_grad=True)
    h = torch.randn(8)
    y = ops.mbconv(
        x, torch.randn(8, 4), h, torch.randn(8, 3, 3), h, torch.randn(2, 8), h[:2], torch.randn(8, 2), h,
        torch.randn(4, 8), h[:4], padding=(1, 1, 1, 1),
    )  # fmt: skip
    with pytest.raises(NotImplementedError, match="mbconv: this operator is for inference"):
        y.sum().backward()


# On a GPU and in the shim: code of the kernels that only large maps reach.
CUDA = [t for t in targets() if t.backend == "cuda" and not t.reasons("mbconv")]
LARGE = {  # names: MMA tile of a thread block (rows x columns), or the subject
    "128x32": cases.mbconv(1, 104, 24, 16, size=7, image=(66, 130)),  # 7x7: expanded in a separate launch
    "64x64": cases.mbconv(1, 136, 40, 40, size=7, image=(64, 128)),
    "32x64": cases.mbconv(1, 8, 40, 40, size=7, image=(64, 66)),
    "32x64_deep": cases.mbconv(1, 168, 168, 72, expand=False, stride=2, image=(64, 132)),
    "several_tiles_a_block": cases.mbconv(30, 8, 200, 8, image=(9, 17), add=True),
    "several_tiles_5x5_deep": cases.mbconv(30, 72, 200, 8, size=5, image=(9, 17)),
    "several_tiles_not_expanded": cases.mbconv(30, 200, 200, 8, expand=False, image=(9, 17)),
    "many_squeezed": cases.mbconv(2, 8, 72, 8, squeezed=300, image=(9, 17)),
}


def large_maps():
    """Yield parameters of name and dtype. bfloat16 takes the paths of float16: the shim's longest are slow tests."""
    for name, dtype in itertools.product(LARGE, (torch.float32, torch.float16, torch.bfloat16)):
        slow = [pytest.mark.slow] if dtype == torch.bfloat16 and name.startswith("several_tiles") else []
        yield pytest.param(name, dtype, id=f"{name}-{str(dtype)[6:]}", marks=slow)


@pytest.mark.parametrize(("name", "dtype"), large_maps())
@pytest.mark.parametrize("target", [pytest.param(t, id=t.id, marks=t.marks) for t in CUDA])
def test_large_maps(target, name, dtype):
    case = cases.Case("mbconv", name, LARGE[name])
    x, *weights = case.arguments(dtype, target.device)
    x = x.contiguous(memory_format=torch.channels_last)
    y = target.run("mbconv", (x, *weights))
    assert_close("y", y, reference.mbconv(*cases.double((x, *weights))), FORWARD[dtype])
    assert torch.equal(y, target.run("mbconv", (x, *weights))), "two equal calls returned different outputs"


CPP = [pytest.param(t, id=t.id, marks=t.marks) for t in targets() if t.id == "cpp-cpu"]


@pytest.mark.parametrize("target", CPP)
@pytest.mark.parametrize("name", ["hidden of several slices", "few channels"])
def test_weights_in_either_memory_order(target, name):
    """An engine stores 1x1 convolutions with their output channels last: nothing but the order of memory changes."""
    sizes = {"hidden of several slices": (1, 24, 144, 40), "few channels": (2, 5, 7, 3)}[name]
    x, *weights = cases.Case("mbconv", name, cases.mbconv(*sizes, image=(9, 37))).arguments(torch.float32, "cpu")
    turned = [w.t().contiguous().t() if isinstance(w, torch.Tensor) and w.dim() == 2 else w for w in weights]
    assert not turned[-5].is_contiguous()
    assert torch.equal(target.run("mbconv", (x, *weights)), target.run("mbconv", (x, *turned)))
