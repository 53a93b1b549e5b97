"""``patch_inverted_residual``: expand, depthwise 3x3, project with the weights of each patch; folded or batch norms."""

import torch
from torch import Tensor

from hyperseg._distributed import check_group
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
)
from hyperseg.ops._layout import empty_map, level_parameters
from hyperseg.ops._registry import define, define_backward

HALOS = ("own", "neighbour")
_FOLDED = "patch_inverted_residual"
_BATCH = "patch_inverted_residual_batch_norm"
_FOLDED_ARGUMENTS = "Tensor x, Tensor weights, Tensor? bias, int hidden, int out_channels, str halo"
_BATCH_ARGUMENTS = (
    "Tensor x, Tensor weights, Tensor scale, Tensor shift, int hidden, int out_channels, str halo, float eps, str group"
)


def check_block(operator: str, x: Tensor, weights: Tensor, hidden: int, out_channels: int, halo: str) -> None:
    """The checks of map and weights that both forms share."""
    check_map(operator, "x", x)
    check_positive(operator, hidden=hidden, out_channels=out_channels)
    check_choice(operator, "halo", halo, HALOS)
    parameters = level_parameters(x.shape[1], hidden, out_channels)
    check_patch_weights(operator, weights, x, parameters, "in * hidden + 9 * hidden + hidden * out_channels")
    check_same_kind(operator, x=x, weights=weights)
    check_reflection(operator, x, (1, 1))


def _check_folded(x, weights, bias, hidden, out_channels, halo):
    check_block(_FOLDED, x, weights, hidden, out_channels, halo)
    check_same_kind(_FOLDED, x=x, bias=bias)
    check_vector(_FOLDED, "bias", bias, 2 * hidden + out_channels, "expand | depthwise | project")


def _check_batch(x, weights, scale, shift, hidden, out_channels, halo, eps, group):
    check_block(_BATCH, x, weights, hidden, out_channels, halo)
    check_same_kind(_BATCH, scale=scale, shift=shift)
    for name, value in (("scale", scale), ("shift", shift)):
        check_vector(_BATCH, name, value, 2 * hidden + out_channels, "expand | depthwise | project")
        if value.device != x.device:
            raise ValueError(f"{_BATCH}: {name} is on {value.device} but x on {x.device}; move them together.")
        precise = torch.promote_types(x.dtype, torch.float32)
        if value.dtype not in (precise, x.dtype):
            raise TypeError(f"{_BATCH}: {name} must be {precise}, for a map of {x.dtype}, got {value.dtype}.")
    if group:
        check_group(_BATCH, group)


def _fake_map(x, out_channels):
    return empty_map(x, out_channels)


def _fake_folded(x, weights, bias, hidden, out_channels, halo):
    return _fake_map(x, out_channels)


def _fake_batch(x, weights, scale, shift, hidden, out_channels, halo, eps, group):
    return _fake_map(x, out_channels), scale.new_empty(scale.shape), scale.new_empty(scale.shape)


def block_flops(x: tuple, weights: tuple, hidden: int, out_channels: int, halo: str) -> int:
    """Two per multiply-add; halo pixels of ``"own"`` count as often as they are expanded (SPEC K)."""
    n, c, h, w = x
    fh, fw = weights[1], weights[2]
    expanded = fh * fw * (h // fh + 2) * (w // fw + 2) if halo == "own" else h * w
    return 2 * n * (expanded * c * hidden + h * w * hidden * (9 + out_channels))


def _flops_folded(x, weights, bias, hidden, out_channels, halo, *args, out_shape=None, **kwargs):
    return block_flops(x, weights, hidden, out_channels, halo)


def _flops_batch(x, weights, scale, shift, hidden, out_channels, halo, *args, out_shape=None, **kwargs):
    return block_flops(x, weights, hidden, out_channels, halo)


def _setup_folded(ctx, inputs, output):
    x, weights, bias, *ctx.constants = inputs
    ctx.save_for_backward(x, weights, bias)


def _backward_folded(ctx, grad):
    x, weights, bias = ctx.saved_tensors
    d_x, d_weights, d_bias = _folded_backward(grad, x, weights, bias, *ctx.constants)
    return d_x, d_weights, None if bias is None else d_bias, None, None, None


def _setup_batch(ctx, inputs, output):
    x, weights, scale, shift, *ctx.constants = inputs
    ctx.mark_non_differentiable(output[1], output[2])
    ctx.save_for_backward(x, weights, scale, shift, output[1], output[2])


def _backward_batch(ctx, grad, _mean, _variance):
    x, weights, scale, shift, mean, variance = ctx.saved_tensors
    gradients = _batch_backward(grad, x, weights, scale, shift, *ctx.constants, mean, variance)
    return *gradients, None, None, None, None, None


def _reference_batch(x, weights, scale, shift, hidden, out_channels, halo, eps, group, mean, variance):
    """Ignores the saved statistics: they depend on x and weights, so they must be recomputed to be differentiated."""
    return reference.patch_inverted_residual_batch_norm(
        x, weights, scale, shift, hidden, out_channels, halo, eps, group
    )


define(
    _FOLDED,
    _FOLDED_ARGUMENTS,
    "Tensor",
    reference=reference.patch_inverted_residual,
    check=_check_folded,
    fake=_fake_folded,
    flops=_flops_folded,
)
_folded_backward = define_backward(
    _FOLDED,
    _FOLDED_ARGUMENTS,
    "(Tensor, Tensor, Tensor)",
    reference=reference.patch_inverted_residual,
    differentiable=(0, 1, 2),
    setup_context=_setup_folded,
    backward=_backward_folded,
)
define(
    _BATCH,
    _BATCH_ARGUMENTS,
    "(Tensor, Tensor, Tensor)",
    reference=reference.patch_inverted_residual_batch_norm,
    check=_check_batch,
    fake=_fake_batch,
    flops=_flops_batch,
)
_batch_backward = define_backward(
    _BATCH,
    f"{_BATCH_ARGUMENTS}, Tensor mean, Tensor variance",
    "(Tensor, Tensor, Tensor, Tensor)",
    reference=_reference_batch,
    differentiable=(0, 1, 2, 3),
    setup_context=_setup_batch,
    backward=_backward_batch,
)


def patch_inverted_residual(
    x: Tensor,
    weights: Tensor,
    bias: Tensor | None = None,
    *,
    hidden: int,
    out_channels: int,
    halo: str = "own",
) -> Tensor:
    """Expand (1x1), depthwise (3x3) and project (1x1) each patch with its own weights; ReLU6 after the first two.

    The network's norms are folded: their scales are in the weights, their shifts are ``bias``. The border of the map
    is reflected. No published network calls this operator: inference runs :func:`decoder_level`, training
    :func:`patch_inverted_residual_batch_norm`. It is a building block for networks of your own. Paper section 3.3;
    SPEC E (order of the weights), G (the two halos).

    Args:
        x: ``[N, C, H, W]``, floating point, at least 2x2 pixels, any memory format.
        weights: ``[N, fh, fw, P]`` with ``P = C * hidden + 9 * hidden + hidden * out_channels``.
        bias: ``[2 * hidden + out_channels]``: after expand, depthwise, project.
        halo: source of the hidden values around a patch: ``"own"`` (HyperSeg v1.0 and unify) recomputes them with
            the patch's own weights, ``"neighbour"`` (v0.1) takes those of the neighbouring patches.

    Returns:
        ``[N, out_channels, H, W]``, in channels-last memory if x is.

    Raises:
        ValueError, TypeError: the shapes, dtypes or devices do not fit together.
    """
    return call(torch.ops.hyperseg.patch_inverted_residual.default, x, weights, bias, hidden, out_channels, halo)


def patch_inverted_residual_batch_norm(
    x: Tensor,
    weights: Tensor,
    scale: Tensor,
    shift: Tensor,
    *,
    hidden: int,
    out_channels: int,
    halo: str = "own",
    eps: float = 1e-5,
    group: str = "",
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`patch_inverted_residual` for training: each of the three steps is normalised by its batch statistics.

    With ``halo="own"`` the first norm counts the halo pixels of every patch: ``N * fh * fw * (ph+2) * (pw+2)`` values
    per channel (SPEC G); the other two count ``N * H * W``.

    Args:
        x, weights, hidden, out_channels, halo: as in :func:`patch_inverted_residual`.
        scale, shift: ``[2 * hidden + out_channels]``: the affine parameters after expand, depthwise, project; float32
            for a float16 or bfloat16 x too.
        eps: added to the variance.
        group: the name of a process group (``group_name`` of a group of ``torch.distributed``) whose processes compute
            the statistics of their common batch, forward and backward, as ``torch.nn.SyncBatchNorm`` does; ``""`` for
            this process alone. All processes make the call, with batches and maps of any size, by the same backend,
            and run its backward pass. The gradient of x is that of the sum of all processes' losses; those of weights,
            scale and shift are this process's part, which DistributedDataParallel averages.

    Returns:
        ``(y, mean, variance)``: y like x; mean and biased variance ``[2 * hidden + out_channels]``, for the running
        statistics, without gradient. With a group they are those of the common batch.

    Raises:
        ValueError, TypeError: the shapes, dtypes or devices do not fit together, or there is no such group.
    """
    return call(
        torch.ops.hyperseg.patch_inverted_residual_batch_norm.default,
        x,
        weights,
        scale,
        shift,
        hidden,
        out_channels,
        halo,
        eps,
        group,
    )
