"""Any image size: which sizes the network takes as they are, and how others are padded."""

import torch.nn.functional as F
from torch import Tensor

STRIDE = 32


def padded_size(size: tuple[int, int], takes_one_more: bool) -> tuple[int, int]:
    """The smallest (H, W) the network takes that is at least ``size``.

    The encoder halves five times, so multiples of 32 fit; with the official static padding a network that ends at half
    resolution also takes one pixel more, as the official code does (SPEC C.3).
    """
    height, width = (
        side if takes_one_more and side > STRIDE and side % STRIDE == 1 else -(-side // STRIDE) * STRIDE
        for side in size
    )
    return height, width


def pad(images: Tensor, takes_one_more: bool) -> Tensor:
    """Repeat the last row and column of ``[N, C, H, W]`` up to a size that the network takes."""
    height, width = images.shape[2:]
    to_height, to_width = padded_size((height, width), takes_one_more)
    if (to_height, to_width) == (height, width):
        return images
    return F.pad(images, (0, to_width - width, 0, to_height - height), mode="replicate")
