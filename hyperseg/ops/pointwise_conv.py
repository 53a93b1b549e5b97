"""``pointwise_conv``: 1x1 convolutions with bias and activation for inference, several of them in one call."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hyperseg.ops import reference
from hyperseg.ops._arguments import call, check_choice, check_map, check_same_kind, check_vector
from hyperseg.ops._registry import define, refuse_derivatives

_NAME = "pointwise_conv"
ACTIVATIONS = ("none", "relu", "silu")


def _check(xs, weights, biases, activations):
    if not xs or not len(xs) == len(weights) == len(biases) == len(activations):
        raise ValueError(
            f"{_NAME}: needs one weight, bias and activation for each map, got {len(xs)} maps, {len(weights)} weights, "
            f"{len(biases)} biases and {len(activations)} activations."
        )
    for x, weight, bias, activation in zip(xs, weights, biases, activations, strict=True):
        check_map(_NAME, "x", x)
        check_same_kind(_NAME, **{"the first x": xs[0]}, x=x, weight=weight, bias=bias)
        if weight.dim() != 2 or weight.shape[0] == 0 or weight.shape[1] != x.shape[1]:
            raise ValueError(
                f"{_NAME}: weight must be [out, {x.shape[1]}] for x of {list(x.shape)}, got {list(weight.shape)}."
            )
        check_vector(_NAME, "bias", bias, weight.shape[0], "one for each output")
        check_choice(_NAME, "activation", activation, ACTIVATIONS)


def _fake(xs, weights, biases, activations):
    return [
        torch.empty(
            (x.shape[0], weight.shape[0], *x.shape[2:]),
            dtype=x.dtype,
            device=x.device,
            memory_format=torch.channels_last,
        )
        for x, weight in zip(xs, weights, strict=True)
    ]


def _flops(xs, weights, biases, activations, *args, out_shape=None, **kwargs):
    return sum(2 * n * c * h * w * weight[0] for (n, c, h, w), weight in zip(xs, weights, strict=True))


define(
    _NAME,
    "Tensor[] xs, Tensor[] weights, Tensor[] biases, str[] activations",
    "Tensor[]",
    reference=reference.pointwise_conv,
    check=_check,
    fake=_fake,
    flops=_flops,
)
refuse_derivatives(_NAME, "this operator is for inference; train nn.Conv2d, or differentiate the function of")


def pointwise_conv(
    xs: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    activations: str | Sequence[str] = "none",
) -> list[Tensor]:
    """1x1 convolutions of maps, each with its own weights: on a GPU one launch for all of them.

    For inference: a backward pass raises NotImplementedError.

    Args:
        xs: ``[N_i, C_i, H_i, W_i]`` each, floating point, any strides.
        weights, biases: ``[out_i, C_i]`` and ``[out_i]`` each, dtype and device of the maps.
        activations: ``"none"``, ``"relu"`` or ``"silu"``, one for all or one for each.

    Returns:
        ``[N_i, out_i, H_i, W_i]`` each, in channels-last memory.

    Raises:
        ValueError, TypeError: the shapes, dtypes or devices do not fit together.
    """
    if isinstance(xs, list | tuple) and not xs:
        raise ValueError(f"{_NAME}: xs must have at least one map.")
    if isinstance(activations, str) and isinstance(xs, list | tuple):
        activations = [activations] * len(xs)
    return call(torch.ops.hyperseg.pointwise_conv.default, xs, weights, biases, activations)
