"""``context_head``: the context head for inference, its norms folded."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hyperseg.ops import reference
from hyperseg.ops._arguments import call, check_map, check_same_kind, check_vector
from hyperseg.ops._registry import define, refuse_derivatives

_NAME = "context_head"


def _check(x, reduce, reduce_bias, down, down_biases, up, up_biases):
    check_map(_NAME, "x", x)
    if (reduce is None) != (reduce_bias is None):
        raise ValueError(f"{_NAME}: give reduce and reduce_bias, or neither.")
    if not down or not len(down) == len(down_biases) == len(up) == len(up_biases):
        raise ValueError(
            f"{_NAME}: needs as many down as up, at least one, with a bias each, got {len(down)} down, "
            f"{len(down_biases)} down_biases, {len(up)} up and {len(up_biases)} up_biases."
        )
    check_same_kind(_NAME, x=x, reduce=reduce, reduce_bias=reduce_bias)
    channels = x.shape[1]
    if reduce is not None:
        _check_convolution("reduce", x, reduce, reduce_bias, [channels])
        channels = reduce.shape[0]
    features = [channels]
    for weight, bias in zip(down, down_biases, strict=True):
        _check_convolution("down", x, weight, bias, [features[-1], 2, 2])
        features.append(weight.shape[0])
    context = features[-1]
    used = features[1:] if reduce is not None else features[:-1]
    for weight, bias, channels in reversed(list(zip(up, up_biases, used, strict=True))):
        _check_convolution("up", x, weight, bias, [channels + context])
        context = weight.shape[0]


def _check_convolution(name: str, x: Tensor, weight: Tensor, bias: Tensor, inputs: list[int]) -> None:
    check_same_kind(_NAME, x=x, **{name: weight, f"{name} bias": bias})
    if weight.dim() != 1 + len(inputs) or list(weight.shape[1:]) != inputs or weight.shape[0] == 0:
        expected = ", ".join(map(str, ["out", *inputs]))
        raise ValueError(f"{_NAME}: {name} must be [{expected}], got {list(weight.shape)}.")
    check_vector(_NAME, f"{name} bias", bias, weight.shape[0], "one for each output")


def _fake(x, reduce, reduce_bias, down, down_biases, up, up_biases):
    channels = up[0].shape[0] + (0 if reduce is None else reduce.shape[0])
    shape = (x.shape[0], channels, *x.shape[2:])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _flops(x, reduce, reduce_bias, down, down_biases, up, up_biases, *args, out_shape=None, **kwargs):
    n, channels, height, width = x
    pixels = [height * width]
    total = 0 if reduce is None else pixels[0] * channels * reduce[0]
    for weight in down:
        height, width = (height + 1) // 2, (width + 1) // 2
        pixels.append(height * width)
        total += pixels[-1] * weight[0] * weight[1] * 4
    used = pixels[:-1] if reduce is None else pixels[1:]
    return 2 * n * (total + sum(p * weight[0] * weight[1] for p, weight in zip(used, up, strict=True)))


define(
    _NAME,
    "Tensor x, Tensor? reduce, Tensor? reduce_bias, Tensor[] down, Tensor[] down_biases, Tensor[] up, "
    "Tensor[] up_biases",
    "Tensor",
    reference=reference.context_head,
    check=_check,
    fake=_fake,
    flops=_flops,
)
refuse_derivatives(
    _NAME, "this operator is for inference; train the modules of hyperseg.models.context, or differentiate"
)


def context_head(
    x: Tensor,
    reduce: Tensor | None,
    reduce_bias: Tensor | None,
    down: Sequence[Tensor],
    down_biases: Sequence[Tensor],
    up: Sequence[Tensor],
    up_biases: Sequence[Tensor],
) -> Tensor:
    """The signal of an encoder's head map, at inference, with norms folded into the convolutions (SPEC C).

    2x2 convolutions at stride 2 with ReLU make a pyramid; odd sides repeat their last line. From the global average of
    its coarsest map, 1x1 convolutions of (map, context doubled by nearest neighbour) go back up. For inference: a
    backward pass raises NotImplementedError.

    Args:
        x: ``[N, C, H, W]``, floating point, any strides.
        reduce, reduce_bias: ``[R, C]`` and ``[R]``: the pyramid of v1_0 (SPEC C.1). It begins with a 1x1 convolution
            and ReLU, joins the average to the coarsest map, and returns the reduced map and the context, concatenated.
            None: that of v0_1 (SPEC C.2), which begins with x and ends with a 1x1 convolution without ReLU.
        down, down_biases: ``[out, in, 2, 2]`` and ``[out]`` of each halving, finest first; at least one.
        up, up_biases: ``[out, map + context]`` and ``[out]`` of as many 1x1 convolutions, finest first.

    Returns:
        ``[N, R + out, H, W]``, or ``[N, out, H, W]`` without reduce, in channels-last memory.

    Raises:
        ValueError, TypeError: the shapes, dtypes or devices do not fit together.
    """
    return call(torch.ops.hyperseg.context_head.default, x, reduce, reduce_bias, down, down_biases, up, up_biases)
