"""Norm, activation and what follows up to the next convolution, in few passes over the maps, on a CPU.

Forward a map is read for its statistics, and once more where it is normalised: on its way into a depthwise convolution,
or with its gate into memory for a 1x1 convolution. Backward the sums of norm and gate are taken in one pass, the
gradient of the map in a second. Only sums per channel come between the passes, so norms may be frozen or synchronised.

The passes are C++ operators (csrc/cpu/ops/norm_act.cpp); tests/training/test_fused.py defines each in plain PyTorch.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hyperseg._distributed import all_reduce
from hyperseg.models.encoder import StaticSameConv2d
from hyperseg.models.norms import (
    SyncBatchNormAct2d,
    batch_statistics,
    group_of,
    update_running_statistics,
    uses_batch_statistics,
)
from hyperseg.ops.backends.cpp import CPP
from hyperseg.ops.backends.dispatch import named_backend
from hyperseg.training.convolutions import convolve, pointwise_input_gradient, pointwise_kernel_gradient
from hyperseg.training.gates import Gate

ACTIVATIONS: dict[type[nn.Module], str] = {nn.Identity: "none", nn.ReLU: "relu", nn.ReLU6: "relu6", nn.SiLU: "silu"}
_native = torch.ops.hyperseg_native


def fuses(x: Tensor, norm: Any, conv: Any = None) -> bool:
    """Return whether the functions of this module take such a map, norm and, if it is given, convolution."""
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64) or torch.is_autocast_enabled("cpu"):
        return False
    if not is_known_norm(norm) or type(norm.act) not in ACTIVATIONS or norm.weight.dtype != x.dtype:
        return False
    if not (conv is None or is_pointwise(conv) or _is_depthwise(conv)):
        return False
    return named_backend() in (None, "cpp") and _is_built()


def is_known_norm(norm: Any) -> bool:
    """Return whether a norm is one of timm's, of this process or synchronised, that does what its activation says."""
    known = type(norm) in (BatchNormAct2d, SyncBatchNormAct2d) and isinstance(norm.drop, nn.Identity)
    return known and norm.affine and norm.track_running_stats


@functools.cache
def _is_built() -> bool:
    return not CPP.unavailable_reasons() and hasattr(_native, "norm_act")  # an older build has none


def is_pointwise(conv: Any) -> bool:
    """Return whether a convolution of :mod:`~hyperseg.training.blocks` is 1x1 and nothing else."""
    return conv.kernel_size == conv.stride == (1, 1) and conv.groups == 1 and padding_of(conv) == (0, 0, 0, 0)


def _is_depthwise(conv: Any) -> bool:
    depthwise = conv.groups == conv.in_channels == conv.out_channels
    known = conv.kernel_size in ((3, 3), (5, 5)) and conv.stride in ((1, 1), (2, 2))
    return depthwise and known and max(padding_of(conv)) < conv.kernel_size[0]


def padding_of(conv: Any) -> tuple[int, int, int, int]:
    """Return the padding of a convolution: (left, right, top, bottom), in the order of ``F.pad``."""
    if isinstance(conv, StaticSameConv2d):
        return conv.static_padding
    vertical, horizontal = conv.padding
    return horizontal, horizontal, vertical, vertical


class Norm(NamedTuple):
    """A norm of one map: ``x * scale + shift``, and what its gradient needs.

    Attributes:
        number: of values per channel, of all processes; None: the norm is frozen.
    """

    mean: Tensor
    deviation: Tensor  # one over the standard deviation
    scale: Tensor
    shift: Tensor
    number: Tensor | int | None
    group: str
    act: str

    @classmethod
    @torch.no_grad()
    def of(cls, x: Tensor, norm: Any) -> "Norm":
        """Return the norm of a map; its running statistics count the map."""
        group, count = group_of(norm), None
        if not uses_batch_statistics(norm):
            mean, variance = norm.running_mean, norm.running_var
        else:
            if group:
                mean, variance, count = batch_statistics(x, group)
            else:
                mean, variance = _native.channel_moments(x)
                count = x.numel() // x.shape[1]
            update_running_statistics(norm, mean, variance, count)
        deviation = torch.rsqrt(variance + norm.eps)
        scale = norm.weight.detach() * deviation
        shift = torch.addcmul(norm.bias.detach(), mean, scale, value=-1)
        return cls(mean, deviation, scale, shift, count, group, ACTIVATIONS[type(norm.act)])

    def gradients(self, by_one: Tensor, by_value: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor, Tensor]:
        """Return coefficients of the map's gradient, and the gradients of weight and bias.

        Args:
            by_one: the sum, per channel, of the gradients of the norm's output; by_value: of their products with
                ``x - mean``.
        """
        d_weight, d_bias = by_value * self.deviation, by_one
        if self.number is None:
            zero = torch.zeros_like(self.scale)
            return (self.scale, zero, zero), d_weight, d_bias
        if self.group:
            sums = all_reduce(torch.stack([by_one, by_value]).double(), self.group) / self.number
            by_one, by_value = sums.to(self.scale.dtype)
        else:
            by_one, by_value = by_one / self.number, by_value / self.number
        level = (self.scale * by_one).neg_()
        tilt = (self.scale * self.deviation.square() * by_value).neg_()
        return (self.scale, tilt, level), d_weight, d_bias

    def write_gradient(
        self,
        out: Tensor,
        grad: Tensor,
        x: Tensor,
        coefficients: Sequence[Tensor],
        gate: Tensor | None = None,
        spread: Tensor | None = None,
    ) -> None:
        """Write the gradient of the map from that of its normalised, activated and gated values.

        Args:
            out: in channels-last memory; ``grad`` itself if that is not needed any more.
            spread: what the mean of each image and channel, from which the gate was computed, gives each pixel.
        """
        _native.norm_act_gradient(
            out, grad, x, self.mean, self.scale, self.shift, gate, spread, *coefficients, self.act
        )


def norm_act(x: Tensor, norm: Any) -> Tensor:
    """Run a batch norm with its activation; for the backward pass only ``x`` is kept."""
    x = x.contiguous(memory_format=torch.channels_last)
    return _NormAct.apply(Norm.of(x, norm), x, norm.weight, norm.bias)


def norm_act_conv(x: Tensor, norm: Any, gate: Any, conv: Any) -> Tensor:
    """Run a norm with its activation, a gate if there is one, and a convolution; keep ``x`` only."""
    x = x.contiguous(memory_format=torch.channels_last)
    found = Norm.of(x, norm)
    if not is_pointwise(conv):
        assert gate is None
        return _Depthwise.apply(found, conv.stride[0], padding_of(conv), x, norm.weight, norm.bias, conv.weight)
    if gate is None:
        return _Pointwise.apply(found, None, x, norm.weight, norm.bias, conv.weight)
    first, second = gate.conv_reduce, gate.conv_expand
    tensors = (first.weight, first.bias, second.weight, second.bias)
    return _Pointwise.apply(found, type(gate.act1), x, norm.weight, norm.bias, conv.weight, *tensors)


class _NormAct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, norm: Norm, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.norm = norm
        ctx.save_for_backward(x)
        return _native.norm_act(x, norm.scale, norm.shift, None, norm.act)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (x,), norm = ctx.saved_tensors, ctx.norm
        grad = grad.contiguous(memory_format=torch.channels_last)
        _, sums = _native.norm_act_sums(grad, x, norm.mean, norm.scale, norm.shift, None, norm.act, False)
        coefficients, d_weight, d_bias = norm.gradients(*sums.sum(0))
        d_x = torch.empty_like(x)
        norm.write_gradient(d_x, grad, x, coefficients)
        return None, d_x, d_weight, d_bias


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        norm: Norm,
        stride: int,
        padding: Sequence[int],
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        kernel: Tensor,
    ) -> Tensor:
        ctx.norm, ctx.stride, ctx.padding = norm, stride, padding
        ctx.save_for_backward(x, kernel)
        return _native.norm_act_depthwise(x, norm.scale, norm.shift, kernel, stride, padding, norm.act)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (x, kernel), norm = ctx.saved_tensors, ctx.norm
        d_norm, d_kernel, sums = _native.norm_act_depthwise_gradients(
            grad, x, norm.mean, norm.scale, norm.shift, kernel, ctx.stride, ctx.padding, norm.act
        )
        coefficients, d_weight, d_bias = norm.gradients(*sums)
        norm._replace(act="none").write_gradient(d_norm, d_norm, x, coefficients)
        return None, None, None, d_norm, d_weight, d_bias, d_kernel


class _Pointwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, norm: Norm, gate_act: Any, x: Tensor, weight: Tensor, bias: Tensor, kernel: Tensor, *gates: Tensor
    ) -> Tensor:
        ctx.norm, ctx.gate_act = norm, gate_act
        pooled = value = None
        if gate_act is not None:
            pooled = _native.norm_act_pool(x, norm.scale, norm.shift, norm.act)
            value = Gate(gate_act, pooled, gates).value
        ctx.save_for_backward(x, pooled, kernel, *gates)
        y = _native.norm_act(x, norm.scale, norm.shift, value, norm.act)
        return convolve(y, kernel, (1, 1), [0, 0], 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, pooled, kernel, *gates = ctx.saved_tensors
        norm, gate, value, spread = ctx.norm, None, None, None
        if ctx.gate_act is not None:
            gate = Gate(ctx.gate_act, pooled, gates)
            value = gate.value
        grad = grad.contiguous(memory_format=torch.channels_last)
        d_y = pointwise_input_gradient(grad, x, kernel).contiguous(memory_format=torch.channels_last)
        y, sums = _native.norm_act_sums(d_y, x, norm.mean, norm.scale, norm.shift, value, norm.act, True)
        d_kernel = pointwise_kernel_gradient(grad, y, kernel)
        del y
        d_gates: tuple[Tensor, ...] = ()
        if gate is None:
            coefficients, d_weight, d_bias = norm.gradients(*sums.sum(0))
        else:
            d_pooled, d_gates = gate.gradients(sums[:, 2])
            spread = d_pooled / (x.shape[2] * x.shape[3])
            of_norm = sums[:, :2] * gate.value[:, None] + sums[:, 3:] * spread[:, None]
            coefficients, d_weight, d_bias = norm.gradients(*of_norm.sum(0))
        norm.write_gradient(d_y, d_y, x, coefficients, value, spread)
        return None, None, d_y, d_weight, d_bias, d_kernel, *d_gates
