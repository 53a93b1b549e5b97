"""What is particular to ``mbconv``."""

import pytest
import timm
import torch

from hyperseg import ops
from hyperseg.models.encoder import EfficientNetTrunk
from hyperseg.runtime.blocks import FusedBlock, fusible
from hyperseg.runtime.folding import _fold_efficientnet


def trunk(name: str) -> EfficientNetTrunk:
    net = EfficientNetTrunk(name, False, 0.0, 64).eval().requires_grad_(False)
    _fold_efficientnet(net)
    return net


def test_every_block_of_the_encoder_is_the_operator():
    net = trunk("efficientnet_b0")
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    x = net.bn1(net.conv_stem(x))
    for stage in net.blocks:
        for block in stage:
            assert fusible(block)
            expected = block(x)
            torch.testing.assert_close(FusedBlock(block)(x), expected, rtol=1e-4, atol=1e-5)
            x = expected


def test_blocks_with_other_activations_stay():
    lite = timm.create_model("efficientnet_lite0").blocks[1][0]
    assert not fusible(lite)


def test_derivatives_are_refused():
    x = torch.randn(1, 4, 5, 5, requires_grad=True)
    h = torch.randn(8)
    y = ops.mbconv(
        x, torch.randn(8, 4), h, torch.randn(8, 3, 3), h, torch.randn(2, 8), h[:2], torch.randn(8, 2), h,
        torch.randn(4, 8), h[:4], padding=(1, 1, 1, 1),
    )  # fmt: skip
    with pytest.raises(NotImplementedError, match="mbconv: this operator is for inference"):
        y.sum().backward()
