"""``patch_conv2d``: patch-wise dynamic convolution; every patch of the image has its own weights."""

import torch
from torch import Tensor

from hyperseg.ops import reference
from hyperseg.ops._arguments import (
    call,
    check_choice,
    check_map,
    check_patch_weights,
    check_positive,
    check_reflection,
    check_same_kind,
    check_vector,
    int_or_pair,
)
from hyperseg.ops._layout import empty_map
from hyperseg.ops._registry import define, define_backward

_NAME = "patch_conv2d"
_ARGUMENTS = (
    "Tensor x, Tensor weights, Tensor? bias, int out_channels, int[] kernel_size, int groups, int[] dilation, "
    "str padding_mode"
)
PADDING_MODES = ("reflect", "zeros", "replicate", "circular")


def _check(x, weights, bias, out_channels, kernel_size, groups, dilation, padding_mode):
    check_map(_NAME, "x", x)
    check_positive(_NAME, out_channels=out_channels, groups=groups)
    if len(kernel_size) != 2 or len(dilation) != 2:
        raise ValueError(f"{_NAME}: kernel_size and dilation need two numbers each, (vertical, horizontal).")
    kh, kw = kernel_size
    if kh < 1 or kw < 1 or kh % 2 == 0 or kw % 2 == 0:
        raise ValueError(
            f"{_NAME}: kernel sizes must be odd, so that the output is as large as the input; got {kh}x{kw}."
        )
    check_positive(_NAME, dilation=min(dilation))
    check_choice(_NAME, "padding_mode", padding_mode, PADDING_MODES)
    if x.shape[1] % groups or out_channels % groups:
        raise ValueError(
            f"{_NAME}: {x.shape[1]} input and {out_channels} output channels do not both divide into {groups} groups."
        )
    parameters = out_channels * (x.shape[1] // groups) * kh * kw
    meaning = "out_channels * (in_channels / groups) * kernel height * kernel width"
    check_patch_weights(_NAME, weights, x, parameters, meaning)
    check_same_kind(_NAME, x=x, weights=weights, bias=bias)
    check_vector(_NAME, "bias", bias, out_channels, "one for each output channel")
    halo = (dilation[0] * (kh // 2), dilation[1] * (kw // 2))
    if padding_mode == "reflect":
        check_reflection(_NAME, x, halo)
    elif padding_mode == "circular" and (halo[0] > x.shape[2] or halo[1] > x.shape[3]):
        raise ValueError(
            f"{_NAME}: a map of {x.shape[2]}x{x.shape[3]} pixels cannot wrap {halo[0]}x{halo[1]} around its border."
        )


def _fake(x, weights, bias, out_channels, *args):
    return empty_map(x, out_channels)


def _flops(x, weights, bias, out_channels, kernel_size, groups, *args, out_shape=None, **kwargs):
    n, c, h, w = x
    return 2 * n * h * w * out_channels * (c // groups) * kernel_size[0] * kernel_size[1]


def _setup_context(ctx, inputs, output):
    x, weights, bias, *ctx.constants = inputs
    ctx.save_for_backward(x, weights, bias)


def _backward(ctx, grad):
    x, weights, bias = ctx.saved_tensors
    d_x, d_weights, d_bias = _operator_backward(grad, x, weights, bias, *ctx.constants)
    return d_x, d_weights, None if bias is None else d_bias, None, None, None, None, None


_operator = define(
    _NAME, _ARGUMENTS, "Tensor", reference=reference.patch_conv2d, check=_check, fake=_fake, flops=_flops
)
_operator_backward = define_backward(
    _NAME,
    _ARGUMENTS,
    "(Tensor, Tensor, Tensor)",
    reference=reference.patch_conv2d,
    differentiable=(0, 1, 2),
    setup_context=_setup_context,
    backward=_backward,
)


def patch_conv2d(
    x: Tensor,
    weights: Tensor,
    bias: Tensor | None = None,
    *,
    out_channels: int,
    kernel_size: int | tuple[int, int] = 1,
    groups: int = 1,
    dilation: int | tuple[int, int] = 1,
    padding_mode: str = "reflect",
) -> Tensor:
    """Convolve each patch of a map with its own weights, at stride 1; the map is padded to keep its size.

    The halo of a patch holds the true pixels of the map; only the map's border is padded. Paper section 3.3; SPEC G.

    Args:
        x: ``[N, C, H, W]``, floating point, any memory format.
        weights: ``[N, fh, fw, P]``; H and W are multiples of fh and fw; a patch's P parameters are its
            ``[out_channels, C / groups, kh, kw]`` weights, flat.
        bias: ``[out_channels]``, shared by all patches.
        kernel_size: odd; one number or (vertical, horizontal), as is ``dilation``.
        padding_mode: ``"reflect"`` (as in HyperSeg), ``"zeros"``, ``"replicate"`` or ``"circular"``.

    Returns:
        ``[N, out_channels, H, W]``, in channels-last memory if x is.

    Raises:
        ValueError, TypeError: the shapes, dtypes or devices do not fit together.
    """
    size, spread = int_or_pair(_NAME, "kernel_size", kernel_size), int_or_pair(_NAME, "dilation", dilation)
    return call(
        torch.ops.hyperseg.patch_conv2d.default, x, weights, bias, out_channels, size, groups, spread, padding_mode
    )
