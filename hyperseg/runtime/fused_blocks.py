"""EfficientNet's stem, blocks and head, and the context head, with batch norms folded: one operator call each."""

from typing import Any

import torch
from torch import Tensor, nn

from hyperseg import ops
from hyperseg.models.context import PyramidContext, UnetContext
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
        self._kept: ops.EncoderBlock | None = None

    def keep_arguments(self) -> None:
        """Look the arguments up once, for the weights as they are in memory now, until the module is moved or cast."""
        self._kept = self._arguments()

    def _apply(self, *args, **kwargs):
        super()._apply(*args, **kwargs)
        self._kept = None
        return self

    def arguments(self) -> ops.EncoderBlock:
        """Return the arguments of the operator besides the map."""
        # A compiler or an exporter must see where the weights come from.
        return self._arguments() if self._kept is None or torch.compiler.is_compiling() else self._kept

    def _arguments(self) -> ops.EncoderBlock:
        depthwise, squeeze = self.block.conv_dw, self.block.se
        return ops.EncoderBlock(
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
            depthwise.stride[0],
            depthwise.static_padding,
            self.block.has_skip,
        )

    def forward(self, x: Tensor) -> Tensor:
        block = self.arguments()
        stride, padding, residual = block.stride, block.padding, block.residual
        return ops.mbconv(x, *block[:10], stride=stride, padding=padding, residual=residual)


def fusible_head(trunk: Any) -> bool:
    """Return whether ``pointwise_conv`` computes the end of this folded trunk of timm."""
    return type(trunk.bn2) is nn.SiLU and trunk.conv_head.kernel_size == (1, 1)


class FusedHead(nn.Module):
    """The folded head of the encoder and the reductions of its features, run by :func:`hyperseg.ops.pointwise_conv`.

    It shares the convolutions' weights.
    """

    reduce: Any

    def __init__(self, encoder: Any):
        super().__init__()
        self.conv_head, self.reduce = encoder.trunk.conv_head, encoder.reduce
        # Here, as torch.export puts other types in the place of modules.
        self.reduced = [i for i, module in enumerate(self.reduce) if type(module) is not nn.Identity]

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Map the trunk's features to those of the configured channels, and to the head map."""
        convs = [self.conv_head, *(self.reduce[i].conv for i in self.reduced)]
        head, *maps = ops.pointwise_conv(
            [features[-1], *(features[i] for i in self.reduced)],
            [conv.weight.flatten(1) for conv in convs],
            [conv.bias for conv in convs],
            activations=["silu", *["none"] * len(self.reduced)],
        )
        features = list(features)
        for i, x in zip(self.reduced, maps, strict=True):
            features[i] = x
        return features, head


def operator_of_context(context: Any, channels: int) -> str | None:
    """Return the operator that computes this folded context head, of which ``channels`` are read; None if none does."""
    if isinstance(context, PyramidContext) and channels <= context.reduced:
        return "pointwise_conv"
    return "context_head" if isinstance(context, PyramidContext | UnetContext) and len(context.down) else None


class FusedContext(nn.Module):
    """Folded context head, run by one operator. It shares the convolutions' weights."""

    reduce: Any
    down: Any
    up: Any

    def __init__(self, context: Any):
        super().__init__()
        pyramid = isinstance(context, PyramidContext)
        self.reduce = context.reduce if pyramid else None
        self.down, self.up = context.down, context.up if pyramid else context.flat

    def forward(self, x: Tensor, channels: int | None = None) -> Tensor:
        """Compute the signal as :class:`hyperseg.models.context.PyramidContext` or ``UnetContext``."""
        weight = bias = None
        if self.reduce is not None:
            weight, bias = self.reduce.conv.weight.flatten(1), self.reduce.conv.bias
            if channels is not None and channels <= weight.shape[0]:
                return ops.pointwise_conv([x], [weight], [bias], activations="relu")[0]
        return ops.context_head(
            x,
            weight,
            bias,
            [block.conv.weight for block in self.down],
            [block.conv.bias for block in self.down],
            [block.conv.weight.flatten(1) for block in self.up],
            [block.conv.bias for block in self.up],
        )
