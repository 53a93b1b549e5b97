"""EfficientNet's blocks, or the last of them, in one operator call."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from hyperseg import ops
from hyperseg.runtime.fused_blocks import FusedBlock

# Output pixels, of all images together, up to which blocks are part of a chain on a GPU: see docs/kernels/cuda.md. A
# barrier of the grid costs half a launch, but a chain has fewer threads per SM than launches have on larger maps.
MOST_PIXELS = 6144


class FusedChain(nn.Module):
    """The blocks of a trunk in one call of :func:`hyperseg.ops.mbconv_chain`; on a GPU, of those on small maps.

    Args:
        stages: the stages of a trunk whose blocks are fused.
        taps: the indices of the stages whose outputs are features; the last stage is one of them.
    """

    def __init__(self, stages: Sequence[nn.Module], taps: Sequence[int]):
        super().__init__()
        self.blocks = nn.ModuleList(block for stage in stages for block in stage.children())
        lengths = [len(list(stage.children())) for stage in stages]
        self.ends = [sum(lengths[: tap + 1]) - 1 for tap in taps]
        # From this block on all are fused.
        self.first = max((i + 1 for i, block in enumerate(self.blocks) if not isinstance(block, FusedBlock)), default=0)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the features."""
        features: list[Tensor] = []
        blocks: Any = self.blocks
        for i, block in enumerate(blocks):
            if i >= self.first and (x.device.type == "cpu" or _pixels(block, x) <= MOST_PIXELS):
                kept = [end - i for end in self.ends if end >= i]
                return features + ops.mbconv_chain(x, [b.arguments() for b in blocks[i:]], kept)
            x = block(x)
            if i in self.ends:
                features.append(x)
        return features


def _pixels(block: FusedBlock, x: Tensor) -> int:
    """The number of pixels of the block's output, of all images."""
    conv = block.block.conv_dw
    (left, right, top, bottom), size, stride = conv.static_padding, conv.kernel_size[0], conv.stride[0]
    n, _, height, width = x.shape
    return n * ((height + top + bottom - size) // stride + 1) * ((width + left + right - size) // stride + 1)
