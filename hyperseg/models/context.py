"""The context heads: from the encoder's stride-32 map to the signal that the weights are generated from (SPEC C)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyperseg.models.layers import conv_norm, conv_norm_act


def _halve(block: nn.Module, x: Tensor) -> Tensor:
    """A 2x2 convolution at stride 2; odd sides, which the official code refuses, repeat their last row or column."""
    height, width = x.shape[2:]
    if height % 2 or width % 2:
        x = F.pad(x, (0, width % 2, 0, height % 2), mode="replicate")
    return block(x)


def _double(x: Tensor, like: Tensor) -> Tensor:
    """Nearest x2, cut to the size of ``like`` (one less where that is odd)."""
    height, width = like.shape[2:]
    return F.interpolate(x, scale_factor=2, mode="nearest")[:, :, :height, :width]


def _pool(x: Tensor) -> Tensor:
    """The global average, as large as ``x``."""
    return x.mean((2, 3), keepdim=True).expand_as(x)


class PyramidContext(nn.Module):
    """v1_0 and unify: the signal is the reduced map and, behind it, the context that comes up from below (SPEC C.1).

    ``channels`` (even) is the width of the map it reads and of the signal it gives.
    """

    def __init__(self, channels: int, levels: int):
        super().__init__()
        half = self.reduced = channels // 2
        self.reduce = conv_norm_act(channels, half, 1)
        self.down = nn.ModuleList(conv_norm_act(half, half, 2, stride=2) for _ in range(levels - 1))
        self.up = nn.ModuleList(conv_norm_act(channels, half, 1) for _ in range(levels - 1))

    def forward(self, x: Tensor, channels: int | None = None) -> Tensor:
        """``[N, C, h, w]`` -> the same shape; or half the channels, if no more than the first ``channels`` are needed.

        In v1_0 no weight generator reads beyond the first half (SPEC D.2), so inference can spare itself the rest.
        """
        features = [self.reduce(x)]
        if channels is not None and channels <= self.reduced:
            return features[0]
        for block in self.down:
            features.append(_halve(block, features[-1]))
        context = _pool(features[-1])
        for block, feature, finer in zip(reversed(self.up), features[:0:-1], features[-2::-1], strict=True):
            context = _double(block(torch.cat([feature, context], 1)), like=finer)
        return torch.cat([features[0], context], 1)


class UnetContext(nn.Module):
    """v0_1: down by 2x2 convolutions, the deepest averaged, up again with skips; no ReLU at the end (SPEC C.2)."""

    def __init__(self, channels: int, levels: int):
        super().__init__()
        self.down = nn.ModuleList(conv_norm_act(channels, channels, 2, stride=2) for _ in range(levels - 1))
        self.flat = nn.ModuleList(
            conv_norm_act(2 * channels, channels, 1) if i else conv_norm(2 * channels, channels, 1)
            for i in range(levels - 1)
        )

    def forward(self, x: Tensor, channels: int | None = None) -> Tensor:
        """``[N, C, h, w]`` -> ``[N, C, h, w]``; all of it depends on everything, whatever ``channels``."""
        features = [x]
        for block in self.down:
            features.append(_halve(block, features[-1]))
        context = _pool(features.pop())
        for block, feature in zip(reversed(self.flat), reversed(features), strict=True):
            context = block(torch.cat([feature, _double(context, like=feature)], 1))
        return context


CONTEXTS = {"pyramid": PyramidContext, "unet": UnetContext}
