"""Any image size: which sizes the network takes as they are, and how others are padded."""

import torch.nn.functional as F
from torch import Tensor

STRIDE = 32


def padded_side(side: int, takes_one_more: bool) -> int:
    """The smallest side the network takes that is at least ``side``.

    The encoder halves five times, so multiples of 32 fit; with the official static padding a network that ends at half
    resolution also takes one pixel more, as the official code does (SPEC C.3).
    """
    if takes_one_more and side > STRIDE and side % STRIDE == 1:
        return side
    return -(-side // STRIDE) * STRIDE


def pad(images: Tensor, takes_one_more: bool) -> Tensor:
    """Repeat the last row and column of ``[N, C, H, W]`` up to a size that the network takes."""
    height, width = images.shape[2:]
    bottom = padded_side(height, takes_one_more) - height
    right = padded_side(width, takes_one_more) - width
    if not bottom and not right:
        return images
    return F.pad(images, (0, right, 0, bottom), mode="replicate")
