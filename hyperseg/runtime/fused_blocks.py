"""EfficientNet's stem and blocks with batch norms folded, as one operator call each."""

from typing import Any

from torch import Tensor, nn

from hyperseg import ops
from hyperseg.models.encoder import StaticSameConv2d


def fusible(block: Any) -> bool:
    """Return whether ``mbconv`` computes this folded block of timm; it does not for the Lite variants, among others."""
    has_expand = hasattr(block, "conv_pwl")
    activations = [block.bn1, block.bn2] if has_expand else [block.bn1]
    last = block.bn3 if has_expand else block.bn2
    squeeze = block.se
    return (
        all(type(act) is nn.SiLU for act in activations)
        and type(last) is nn.Identity
        and type(getattr(squeeze, "act1", None)) is nn.SiLU
        and type(getattr(squeeze, "gate", None)) is nn.Sigmoid
        and type(getattr(block, "aa", nn.Identity())) is nn.Identity
        and getattr(block, "conv_s2d", None) is None
        and isinstance(block.conv_dw, StaticSameConv2d)
        and block.conv_dw.kernel_size[0] <= 7
    )


def fusible_stem(trunk: Any) -> bool:
    """Return whether ``stem`` computes the beginning of this folded trunk of timm."""
    conv = trunk.conv_stem
    return type(trunk.bn1) is nn.SiLU and isinstance(conv, StaticSameConv2d) and conv.kernel_size[0] <= 7


class FusedStem(nn.Module):
    """Folded stem, run on uint8 frames by :func:`hyperseg.ops.stem`. It shares the convolution's weights."""

    conv: Any

    def __init__(self, conv: nn.Module):
        super().__init__()
        self.conv = conv

    def forward(self, frames: Tensor, scale: Tensor, shift: Tensor, size: tuple[int, int]) -> Tensor:
        """Run on frames ``[N, H, W, 3]`` padded to ``size``; scale and shift as of :func:`pixel_affine`."""
        return ops.stem(
            frames,
            scale,
            shift,
            self.conv.weight,
            self.conv.bias,
            size=size,
            stride=self.conv.stride[0],
            padding=self.conv.static_padding,
        )


class FusedBlock(nn.Module):
    """Folded block, run by :func:`hyperseg.ops.mbconv`. It shares the block's weights."""

    block: Any
    expand: Any
    project: Any

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block = block
        self.expand = block.conv_pw if hasattr(block, "conv_pwl") else None
        self.project = block.conv_pwl if hasattr(block, "conv_pwl") else block.conv_pw

    def forward(self, x: Tensor) -> Tensor:
        depthwise, squeeze = self.block.conv_dw, self.block.se
        return ops.mbconv(
            x,
            None if self.expand is None else self.expand.weight.flatten(1),
            None if self.expand is None else self.expand.bias,
            depthwise.weight.flatten(0, 1),
            depthwise.bias,
            squeeze.conv_reduce.weight.flatten(1),
            squeeze.conv_reduce.bias,
            squeeze.conv_expand.weight.flatten(1),
            squeeze.conv_expand.bias,
            self.project.weight.flatten(1),
            self.project.bias,
            stride=depthwise.stride[0],
            padding=depthwise.static_padding,
            residual=self.block.has_skip,
        )
