"""``stem``: uint8 frames to the encoder's first map, norm folded, for inference."""

import torch
from torch import Tensor

from hyperseg.ops import reference
from hyperseg.ops._arguments import call, check_positive, check_same_kind, check_vector, describe, four_sides, two_ints
from hyperseg.ops._registry import define, refuse_derivatives

_NAME = "stem"
_MOST_TAPS = 7


def _check(frames, scale, shift, weight, bias, height, width, stride, padding):
    if frames.dim() != 4 or frames.shape[3] != 3:
        raise ValueError(f"{_NAME}: frames must be [N, H, W, 3], got {list(frames.shape)}.")
    if frames.dtype != torch.uint8:
        raise TypeError(f"{_NAME}: frames must be torch.uint8, got {frames.dtype}; give the pixels as they are.")
    if 0 in frames.shape:
        raise ValueError(f"{_NAME}: frames must not be empty, got shape {list(frames.shape)}.")
    check_positive(_NAME, stride=stride)
    if weight.dim() != 4 or weight.shape[1] != 3 or weight.shape[2] != weight.shape[3] or 0 in weight.shape:
        raise ValueError(f"{_NAME}: weight must be [C, 3, size, size], got {list(weight.shape)}.")
    if not weight.is_floating_point():
        raise TypeError(f"{_NAME}: weight must be floating point, got {weight.dtype}.")
    check_vector(_NAME, "bias", bias, weight.shape[0], "one for each output")
    check_same_kind(_NAME, weight=weight, bias=bias)
    wide = torch.promote_types(weight.dtype, torch.float32)
    for name, value in (("scale", scale), ("shift", shift)):
        check_vector(_NAME, name, value, 3, "red, green, blue")
        if value.dtype != wide:
            raise TypeError(f"{_NAME}: {name} must be {wide}, for a weight of {weight.dtype}, got {value.dtype}.")
    for name, value in (("scale", scale), ("shift", shift), ("weight", weight)):
        if value.device != frames.device:
            raise ValueError(f"{_NAME}: {name} is on {value.device} but frames on {frames.device}; move them together.")
    if height < frames.shape[1] or width < frames.shape[2]:
        raise ValueError(
            f"{_NAME}: size is that of the padded image, at least that of the frames, {list(frames.shape[1:3])}, got "
            f"{[height, width]}."
        )
    size = weight.shape[2]
    if size > _MOST_TAPS:
        raise ValueError(f"{_NAME}: the convolution must have 1x1 to 7x7 taps, got {size}x{size}.")
    if len(padding) != 4 or not all(0 <= p < size for p in padding):
        raise ValueError(f"{_NAME}: padding must be [left, right, top, bottom], each 0 to {size - 1}, got {padding}.")
    rows, columns = _out_size(height, width, size, stride, padding)
    if rows < 1 or columns < 1:
        raise ValueError(f"{_NAME}: an image of {[height, width]} is smaller than the convolution, {size}x{size}.")


def _out_size(height, width, size, stride, padding):
    left, right, top, bottom = padding
    return (height + top + bottom - size) // stride + 1, (width + left + right - size) // stride + 1


def _fake(frames, scale, shift, weight, bias, height, width, stride, padding):
    shape = (frames.shape[0], weight.shape[0], *_out_size(height, width, weight.shape[2], stride, padding))
    return torch.empty(shape, dtype=weight.dtype, device=frames.device, memory_format=torch.channels_last)


def _flops(frames, scale, shift, weight, bias, height, width, stride, padding, *args, out_shape=None, **kwargs):
    rows, columns = _out_size(height, width, weight[2], stride, padding)
    return 2 * frames[0] * rows * columns * weight[0] * 3 * weight[2] * weight[2]


define(
    _NAME,
    "Tensor frames, Tensor scale, Tensor shift, Tensor weight, Tensor bias, SymInt height, SymInt width, int stride, "
    "int[] padding",
    "Tensor",
    reference=reference.stem,
    check=_check,
    fake=_fake,
    flops=_flops,
)
refuse_derivatives(_NAME, "this operator is for inference; train timm's modules, or differentiate the function of")


def stem(
    frames: Tensor,
    scale: Tensor,
    shift: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    size: tuple[int, int] | None = None,
    stride: int = 1,
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
) -> Tensor:
    """The first convolution of an encoder on camera frames: normalise, pad, convolve, SiLU; its norm is folded.

    A pixel's normalised value is ``frame * scale + shift`` in the dtype of scale, rounded to that of weight. The last
    row and column of the frame are repeated up to ``size`` (SPEC C.3); zeros are padded around that (SPEC B.2).
    For inference: a backward pass raises NotImplementedError.

    Args:
        frames: uint8 ``[N, H, W, 3]``, any strides.
        scale, shift: ``[3]``, float32; float64 for a float64 weight.
        weight, bias: ``[C, 3, taps, taps]``, floating point, at most 7 taps, and ``[C]``.
        size: (height, width) of the padded image, at least (H, W); None: that of the frames.
        stride: of the convolution.
        padding: zeros around the normalised, padded image: (left, right, top, bottom).

    Returns:
        ``[N, C, H', W']`` in channels-last memory and the dtype of weight.

    Raises:
        ValueError, TypeError: the shapes, dtypes or devices do not fit together.
    """
    if not isinstance(frames, Tensor) or frames.dim() != 4:
        raise ValueError(f"{_NAME}: frames must be a tensor [N, H, W, 3], got {describe(frames)}.")
    meaning = "(height, width) of the padded image"
    height, width = frames.shape[1:3] if size is None else two_ints(_NAME, "size", size, meaning)
    around = four_sides(_NAME, padding)
    return call(
        torch.ops.hyperseg.stem.default,
        frames,
        scale,
        shift,
        weight,
        bias,
        height,
        width,
        stride,
        around,
    )
