"""EfficientNet's blocks in training, with a fraction of their memory.

As plain PyTorch a block keeps seven maps of its expanded width for the backward pass: the outputs of its two wide
convolutions, and of each norm, activation and gate after them. Here it keeps the outputs of convolutions only. What
follows them up to the next convolution is cheap to compute again, and its gradient is computed here: less is written
and read, so a step takes less time as well.
"""

import functools
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.models import _efficientnet_blocks as timm_blocks
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hyperseg.models import HyperSeg
from hyperseg.models.encoder import StaticSameConv2d
from hyperseg.models.norms import (
    batch_norm_gradients,
    batch_statistics,
    group_of,
    update_running_statistics,
    uses_batch_statistics,
)
from hyperseg.training import fused
from hyperseg.training.convolutions import convolution_gradients, convolve
from hyperseg.training.gates import ACTIVATIONS, Gate

_aten = torch.ops.aten


def lean_blocks(network: HyperSeg) -> int:
    """Let the encoder's blocks keep the outputs of convolutions only; return how many blocks do.

    Blocks with parts that are not known here stay as they are. Parameters, buffers and what a block computes stay the
    same, up to rounding; in eval mode and without gradients a block runs as before.
    """
    blocks: list[Any] = [block for block in network.encoder.modules() if _is_known(block)]
    for block in blocks:
        block.forward = functools.partial(_forward, block, block.forward)
    inside = {norm for block in blocks for norm in block.modules()}
    for norm in network.encoder.modules():
        if norm not in inside and _is_known_norm(norm):
            norm.forward = functools.partial(_forward_norm, norm, norm.forward)
    return len(blocks)


def _is_known(block: Any) -> bool:
    """Return whether a block consists of parts that :func:`_forward` computes."""
    kinds = (timm_blocks.InvertedResidual, timm_blocks.DepthwiseSeparableConv)
    if type(block) not in kinds or block.conv_s2d is not None or not isinstance(block.aa, nn.Identity):
        return False
    return all(_is_known_norm(norm) and _is_known_conv(conv) for norm, _, conv in _pairs(block)) and (
        isinstance(block.se, nn.Identity) or _is_known_gate(block.se)
    )


def _is_known_norm(norm: Any) -> bool:
    return fused.is_known_norm(norm) and type(norm.act) in ACTIVATIONS


def _is_known_conv(conv: Any) -> bool:
    known = type(conv) in (nn.Conv2d, StaticSameConv2d) and conv.bias is None and conv.dilation == (1, 1)
    return known and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)


def _is_known_gate(gate: Any) -> bool:
    known = type(gate) is timm_blocks.SqueezeExcite and type(gate.gate) is nn.Sigmoid
    return known and type(gate.act1) in ACTIVATIONS


def _pairs(block: Any) -> list[tuple[Any, Any, Any]]:
    """Return each norm with an activation, the gate after it or None, and the convolution that follows."""
    gate = None if isinstance(block.se, nn.Identity) else block.se
    if isinstance(block, timm_blocks.InvertedResidual):
        return [(block.bn1, None, block.conv_dw), (block.bn2, gate, block.conv_pwl)]
    return [(block.bn1, gate, block.conv_pw)]


def _forward(block: Any, plain: Any, x: Tensor) -> Tensor:
    if not torch.is_grad_enabled() or not block.training:
        return plain(x)
    expands = isinstance(block, timm_blocks.InvertedResidual)
    y = block.conv_pw(x) if expands else block.conv_dw(x)
    for norm, gate, conv in _pairs(block):
        y = norm_act_conv(y, norm, gate, conv)
    norm = block.bn3 if expands else block.bn2
    y = fused.norm_act(y, norm) if fused.fuses(y, norm) else norm(y)
    return block.drop_path(y) + x if block.has_skip else y


def _forward_norm(norm: Any, plain: Any, x: Tensor) -> Tensor:
    fused_norm = torch.is_grad_enabled() and norm.training and fused.fuses(x, norm)
    return fused.norm_act(x, norm) if fused_norm else plain(x)


class _Spec(NamedTuple):
    """What a norm, gate and convolution compute, besides tensors.

    Attributes:
        values: their number per channel; None: the norm is frozen.
        group: processes with common statistics.
        padding: (left, right, top, bottom), in the order of ``F.pad``.
    """

    eps: float
    values: Tensor | int | None
    group: str
    act: type[nn.Module]
    gate_act: type[nn.Module] | None
    stride: tuple[int, ...]
    padding: tuple[int, int, int, int]
    groups: int


def norm_act_conv(x: Tensor, norm: Any, gate: Any, conv: Any) -> Tensor:
    """Run a batch norm with activation, a squeeze-and-excitation gate if there is one, and a convolution.

    For the backward pass only ``x``, the parameters and the norm's statistics are kept.
    """
    if fused.fuses(x, norm, conv):
        return fused.norm_act_conv(x, norm, gate, conv)
    group = group_of(norm)
    mean, variance, count = _statistics(x, norm, group)
    padding = fused.padding_of(conv)
    gate_act = None if gate is None else type(gate.act1)
    spec = _Spec(norm.eps, count, group, type(norm.act), gate_act, conv.stride, padding, conv.groups)
    tensors = [x, norm.weight, norm.bias, mean, variance, conv.weight]
    if gate is not None:
        first, second = gate.conv_reduce, gate.conv_expand
        tensors += [first.weight, first.bias, second.weight, second.bias]
    if not torch.is_autocast_enabled(x.device.type):
        return _NormActConv.apply(spec, *tensors)
    with torch.autocast(x.device.type, enabled=False):
        tensors[5] = conv.weight.to(x.dtype)
        return _NormActConv.apply(spec, *tensors)


@torch.no_grad()
def _statistics(x: Tensor, norm: Any, group: str) -> tuple[Tensor, Tensor, Tensor | int | None]:
    """Return mean and variance for a norm, and the number of values they are of; count the batch.

    A frozen norm has its running statistics, and no number.
    """
    if not uses_batch_statistics(norm):
        return norm.running_mean, norm.running_var, None
    if group or norm.momentum is None:
        mean, variance, count = batch_statistics(x, group)
        update_running_statistics(norm, mean, variance, count)
        return mean, variance, count
    norm.num_batches_tracked += 1
    mean, variance = _aten.batch_norm_update_stats(x, norm.running_mean, norm.running_var, norm.momentum)
    return mean, variance, x.numel() // x.shape[1]


class _NormActConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, spec: _Spec, x: Tensor, *tensors: Tensor) -> Tensor:
        weight, bias, mean, variance, kernel, *gates = tensors
        ctx.spec = spec
        y = ACTIVATIONS[spec.act][0](F.batch_norm(x, mean, variance, weight, bias, eps=spec.eps), inplace=True)
        pooled = None
        if spec.gate_act is not None:
            pooled = y.mean((2, 3), dtype=bias.dtype)
            y.mul_(Gate(spec.gate_act, pooled, gates).value.to(y.dtype)[:, :, None, None])
        ctx.save_for_backward(x, pooled, *tensors)
        y, padding = _padded(y, spec.padding)
        return convolve(y, kernel, spec.stride, padding, spec.groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, pooled, weight, bias, mean, variance, kernel, *gates = ctx.saved_tensors
        spec: _Spec = ctx.spec
        act, act_gradient = ACTIVATIONS[spec.act]
        before = F.batch_norm(x, mean, variance, weight, bias, eps=spec.eps)
        gated = y = act(before)
        if spec.gate_act is not None:
            gate = Gate(spec.gate_act, pooled, gates)
            factor = gate.value.to(y.dtype)[:, :, None, None]
            gated = y * factor
        padded, padding = _padded(gated, spec.padding)
        d_y, d_kernel = convolution_gradients(grad, padded, kernel, spec.stride, padding, spec.groups)
        if padded is not gated:
            left, _, top, _ = spec.padding
            d_y = d_y[:, :, top : top + y.shape[2], left : left + y.shape[3]]
        d_gates: tuple[Tensor, ...] = ()
        if spec.gate_act is not None:
            d_pooled, d_gates = gate.gradients(torch.mul(d_y, y, out=gated).sum((2, 3), dtype=bias.dtype))
            spread = (d_pooled / (y.shape[2] * y.shape[3])).to(y.dtype)[:, :, None, None]
            d_y = torch.addcmul(spread, d_y, factor, out=gated)
        d_before = act_gradient(d_y, before)
        del before, y, gated, padded, d_y  # at the largest maps these would be the peak of a step
        if spec.values is None:
            gradients = _aten.native_batch_norm_backward(
                d_before, x, weight, mean, variance, None, None, False, spec.eps, [True, True, True]
            )
        else:
            gradients = batch_norm_gradients(d_before, x, weight, mean, variance, spec.values, spec.eps, spec.group)
        return None, *gradients, None, None, d_kernel, *d_gates


def _padded(x: Tensor, padding: tuple[int, int, int, int]) -> tuple[Tensor, list[int]]:
    """Return a map, padded if its sides differ, and the (vertical, horizontal) padding for the convolution to add."""
    left, right, top, bottom = padding
    if (left, top) == (right, bottom):
        return x, [top, left]
    return F.pad(x, padding), [0, 0]
