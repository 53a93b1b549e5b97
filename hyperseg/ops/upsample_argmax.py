"""``upsample_argmax``: logits to the label of every full-size pixel."""

import torch
from torch import Tensor

from hyperseg.ops import reference
from hyperseg.ops._arguments import LARGEST, call, check_map, check_positive, two_ints
from hyperseg.ops._registry import define

_NAME = "upsample_argmax"


def _check(logits, height, width):
    check_map(_NAME, "logits", logits, "[N, C, h, w]")
    check_positive(_NAME, height=height, width=width)
    if height > LARGEST or width > LARGEST:
        raise ValueError(f"{_NAME}: height and width must be 2^24 at most, got {height} and {width}.")
    if logits.shape[1] > 256:
        raise ValueError(f"{_NAME}: labels are uint8, so there can be 256 classes at most, got {logits.shape[1]}.")


def _fake(logits, height, width):
    return logits.new_empty((logits.shape[0], height, width), dtype=torch.uint8)


define(
    _NAME,
    "Tensor logits, SymInt height, SymInt width",
    "Tensor",
    reference=reference.upsample_argmax,
    check=_check,
    fake=_fake,
)


def upsample_argmax(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """The class of each pixel of the bilinearly upsampled logits, which kernels never write to memory.

    Args:
        logits: ``[N, C, h, w]``, floating point, any strides, at most 256 classes.
        size: ``(H, W)`` of the labels; sampling as ``interpolate(mode="bilinear", align_corners=False)``.

    Returns:
        uint8 ``[N, H, W]``; of equal scores the lowest class; NaN counts as the largest score. Scores are upsampled in
        float32, or in float64 for float64 logits.

    Raises:
        ValueError, TypeError: more than 256 classes, or not a floating-point ``[N, C, h, w]``.
    """
    return call(torch.ops.hyperseg.upsample_argmax.default, logits, *two_ints(_NAME, "size", size, "(H, W)"))
