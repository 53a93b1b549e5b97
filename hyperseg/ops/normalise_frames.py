"""``normalise_frames``: uint8 frames to normalised, padded images."""

import torch
from torch import Tensor

from hyperseg.ops import reference
from hyperseg.ops._arguments import call, check_vector, describe, two_ints
from hyperseg.ops._registry import define, refuse_derivatives

_NAME = "normalise_frames"


def _check(frames, scale, shift, like, height, width):
    if frames.dim() != 4 or frames.shape[3] != 3:
        raise ValueError(f"{_NAME}: frames must be [N, H, W, 3], got {list(frames.shape)}.")
    if frames.dtype != torch.uint8:
        raise TypeError(f"{_NAME}: frames must be torch.uint8, got {frames.dtype}; give the pixels as they are.")
    if 0 in frames.shape:
        raise ValueError(f"{_NAME}: frames must not be empty, got shape {list(frames.shape)}.")
    if not like.is_floating_point():
        raise TypeError(f"{_NAME}: like must be floating point, got {like.dtype}.")
    wide = torch.promote_types(like.dtype, torch.float32)
    for name, value in (("scale", scale), ("shift", shift)):
        check_vector(_NAME, name, value, 3, "red, green, blue")
        if value.dtype != wide:
            raise TypeError(f"{_NAME}: {name} must be {wide}, for images of {like.dtype}, got {value.dtype}.")
    for name, value in (("scale", scale), ("shift", shift), ("like", like)):
        if value.device != frames.device:
            raise ValueError(f"{_NAME}: {name} is on {value.device} but frames on {frames.device}; move them together.")
    if height < frames.shape[1] or width < frames.shape[2]:
        raise ValueError(
            f"{_NAME}: size is that of the padded image, at least that of the frames, {list(frames.shape[1:3])}, got "
            f"{[height, width]}."
        )


def _fake(frames, scale, shift, like, height, width):
    shape = (frames.shape[0], 3, height, width)
    return torch.empty(shape, dtype=like.dtype, device=frames.device, memory_format=torch.channels_last)


define(
    _NAME,
    "Tensor frames, Tensor scale, Tensor shift, Tensor like, SymInt height, SymInt width",
    "Tensor",
    reference=reference.normalise_frames,
    check=_check,
    fake=_fake,
)
refuse_derivatives(_NAME, "uint8 frames have no gradient; differentiate the function of")


def normalise_frames(
    frames: Tensor, scale: Tensor, shift: Tensor, *, like: Tensor, size: tuple[int, int] | None = None
) -> Tensor:
    """Normalise camera frames, and repeat their last row and column up to ``size``.

    A value is ``frame * scale + shift`` in the dtype of scale, rounded to that of ``like``.

    Args:
        frames: uint8 ``[N, H, W, 3]``, any strides.
        scale, shift: ``[3]``, float32; float64 for float64 images.
        like: any tensor with the dtype of the images.
        size: (height, width) of the images, at least (H, W); None: that of the frames.

    Returns:
        ``[N, 3, height, width]`` in channels-last memory.

    Raises:
        ValueError, TypeError: the shapes, dtypes or devices do not fit together.
    """
    if not isinstance(frames, Tensor) or frames.dim() != 4:
        raise ValueError(f"{_NAME}: frames must be a tensor [N, H, W, 3], got {describe(frames)}.")
    meaning = "(height, width) of the images"
    height, width = frames.shape[1:3] if size is None else two_ints(_NAME, "size", size, meaning)
    return call(torch.ops.hyperseg.normalise_frames.default, frames, scale, shift, like, height, width)
