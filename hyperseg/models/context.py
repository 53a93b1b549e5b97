"""Context heads: from the encoder's stride-32 map to the signal from which weights are generated (SPEC C)."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyperseg.models.layers import conv_norm, conv_norm_act


def _halve(block: nn.Module, x: Tensor) -> Tensor:
    """Halve by a 2x2 convolution at stride 2; odd sides, which the official code rejects, repeat their last line."""
    height, width = x.shape[2:]
    if height % 2 or width % 2:
        x = F.pad(x, (0, width % 2, 0, height % 2), mode="replicate")
    return block(x)


def _double(x: Tensor, like: Tensor) -> Tensor:
    """Double by nearest neighbour, cropped to the size of ``like`` (one less where that is odd)."""
    height, width = like.shape[2:]
    return F.interpolate(x, scale_factor=2, mode="nearest")[:, :, :height, :width]


def _pool(x: Tensor) -> Tensor:
    """Return the global average, expanded to the size of ``x``."""
    return x.mean((2, 3), keepdim=True).expand_as(x)


class PyramidContext(nn.Module):
    """Context head of v1_0 and unify: the reduced map, then context from coarser resolutions (SPEC C.1).

    Args:
        channels: of input and signal, even.
        levels: resolutions.
    """

    def __init__(self, channels: int, levels: int):
        super().__init__()
        half = self.reduced = channels // 2
        self.reduce = conv_norm_act(channels, half, 1)
        self.down = nn.ModuleList(conv_norm_act(half, half, 2, stride=2) for _ in range(levels - 1))
        self.up = nn.ModuleList(conv_norm_act(channels, half, 1) for _ in range(levels - 1))

    def forward(self, x: Tensor, channels: int | None = None) -> Tensor:
        """Compute the signal of ``x [N, C, h, w]``.

        Args:
            channels: the caller reads only the first ``channels``. In v1_0 no weight generator reads beyond the first
                half (SPEC D.2), so inference skips the rest.

        Returns:
            ``[N, C, h, w]``, or ``[N, C / 2, h, w]`` if these are enough.
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

    def parts(self) -> Iterator[tuple[int, nn.Module]]:
        """Yield ``(d, module)``: the modules whose norms run on the input's size divided by ``2**d``, rounded up."""
        yield 0, self.reduce
        for d, blocks in enumerate(zip(self.down, self.up, strict=True), start=1):
            yield from ((d, block) for block in blocks)


class UnetContext(nn.Module):
    """Context head of v0_1: 2x2 convolutions down, a global average, up with skips; no last ReLU (SPEC C.2)."""

    def __init__(self, channels: int, levels: int):
        super().__init__()
        self.down = nn.ModuleList(conv_norm_act(channels, channels, 2, stride=2) for _ in range(levels - 1))
        self.flat = nn.ModuleList(
            conv_norm_act(2 * channels, channels, 1) if i else conv_norm(2 * channels, channels, 1)
            for i in range(levels - 1)
        )

    def forward(self, x: Tensor, channels: int | None = None) -> Tensor:
        """Compute the signal ``[N, C, h, w]``. ``channels`` is ignored: each output depends on the whole input."""
        features = [x]
        for block in self.down:
            features.append(_halve(block, features[-1]))
        context = _pool(features.pop())
        for block, feature in zip(reversed(self.flat), reversed(features), strict=True):
            context = block(torch.cat([feature, _double(context, like=feature)], 1))
        return context

    def parts(self) -> Iterator[tuple[int, nn.Module]]:
        """Yield ``(d, module)`` as :meth:`PyramidContext.parts`."""
        for d, (down, flat) in enumerate(zip(self.down, self.flat, strict=True)):
            yield d + 1, down
            yield d, flat


CONTEXTS = {"pyramid": PyramidContext, "unet": UnetContext}
