"""Batch norms: which statistics one uses, its affine map for folding, and statistics over several processes."""

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, distributed, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from hyperseg._distributed import all_reduce, name_of_group

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def uses_batch_statistics(norm: Any) -> bool:
    """Return whether a batch norm computes mean and variance of its input: in training, and without running ones."""
    return norm.training or (norm.running_mean is None and norm.running_var is None)


def is_foldable(norm: Any) -> bool:
    """Return whether a norm is the map of :func:`fold_affine`: without activation, and with running statistics."""
    standard = type(norm).forward in (nn.BatchNorm2d.forward, nn.SyncBatchNorm.forward, SyncBatchNorm2d.forward)
    return standard and not uses_batch_statistics(norm)


def check_running_statistics(model: nn.Module) -> None:
    """Check that every batch norm has running statistics, as folding needs.

    Raises:
        ValueError: one has none; the message names it and says what to do.
    """
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise ValueError(
                f"{name} has no running statistics (track_running_stats=False), so it cannot be folded for inference. "
                "Train with track_running_stats=True, or run the network itself instead of an engine."
            )


def needs_several_values(module: nn.Module) -> bool:
    """Return whether a batch norm in the module computes its statistics from the batch of this process alone."""
    return any(
        isinstance(norm, _BatchNorm) and uses_batch_statistics(norm) and not _is_synchronised(norm)
        for norm in module.modules()
    )


def _is_synchronised(norm: nn.Module) -> bool:
    if isinstance(norm, SyncBatchNorm2d):
        return group_of(norm) != ""
    several = distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
    return several and isinstance(norm, nn.SyncBatchNorm)


def fold_affine(norm: Any, name: str = "norm") -> tuple[Tensor, Tensor]:
    """Return scale and bias ``[C]``, such that a batch norm in eval mode computes ``x * scale + bias``.

    Its eps, and weight and bias if it has them, are those of this norm. It may be of a class derived from batch norm
    that adds an activation, which is not part of the map.

    Raises:
        ValueError: it is not a batch norm, or has no running statistics; the message begins with ``name``.
    """
    if not isinstance(norm, _BatchNorm) or norm.running_mean is None or norm.running_var is None:
        raise ValueError(
            f"{name} is {norm}, expected a batch norm with running statistics: only these can be folded for inference. "
            "Run the network itself, in eval mode, instead of an engine."
        )
    scale = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        scale = norm.weight * scale
    bias = -norm.running_mean * scale
    return scale, bias if norm.bias is None else norm.bias + bias


# ---------------------------------------------------------------------------------------------------------------------
# Statistics over several processes


class SyncBatchNorm2d(nn.BatchNorm2d):
    """A batch norm that in training computes its statistics over the processes of a group, on any device.

    Forward and backward are those of :class:`torch.nn.SyncBatchNorm`: processes may have batches of different sizes,
    the input's gradient is that of the sum of all losses, the parameters' gradients are this process's part.
    In eval mode, and if the group is one process, it is :class:`torch.nn.BatchNorm2d`. Its state is the same too.

    Attributes:
        group: the name of the group, ``""`` for this process alone; None for the default group at the time of a call.
    """

    group: str | None = None

    def forward(self, x: Tensor) -> Tensor:
        if group := group_of(self):
            return self._synchronised(x, group)
        return nn.BatchNorm2d.forward(self, x)

    def _synchronised(self, x: Tensor, group: str) -> Tensor:
        self._check_input_dim(x)
        y, mean, variance, count = _Normalise.apply(x, self.weight, self.bias, self.eps, group)
        update_running_statistics(self, mean, variance, count)
        return y


class SyncBatchNormAct2d(SyncBatchNorm2d, BatchNormAct2d):
    """The same with timm's dropout and activation after the norm."""

    def forward(self, x: Tensor) -> Tensor:
        if group := group_of(self):
            return self.act(self.drop(self._synchronised(x, group)))
        return BatchNormAct2d.forward(self, x)


_SYNCHRONISED: dict[type[nn.Module], type[SyncBatchNorm2d]] = {
    nn.BatchNorm2d: SyncBatchNorm2d,
    BatchNormAct2d: SyncBatchNormAct2d,
}


def synchronise_norms(model: nn.Module, group: "ProcessGroup | str | None" = None) -> nn.Module:
    """Let the batch norms of a network compute their statistics over the processes of a group.

    The norms change their class and stay the same modules: parameters, buffers, hooks and state dicts are unaffected,
    so it may be called before or after an optimizer, an average of the weights or DistributedDataParallel is made.
    Norms that are synchronised already get the new group.

    Args:
        model: changed in place.
        group: a process group or its name; None for the default group at the time of each training step, or this
            process alone if there is none then.

    Returns:
        The model.

    Raises:
        ValueError: a batch norm is of a class that cannot be synchronised, or there is no such group. Nothing changed.
    """
    name = None if group is None else name_of_group(group)
    norms = {key: module for key, module in model.named_modules() if isinstance(module, _BatchNorm)}
    for key, norm in norms.items():
        if type(norm) not in _SYNCHRONISED and not isinstance(norm, SyncBatchNorm2d | nn.SyncBatchNorm):
            raise ValueError(
                f"{key} is a {type(norm).__name__}, which computes statistics of this process alone; only BatchNorm2d "
                "and timm's BatchNormAct2d can be synchronised. Replace it, or train in one process."
            )
    for norm in norms.values():
        if not isinstance(norm, nn.SyncBatchNorm):
            norm.__class__ = _SYNCHRONISED.get(type(norm), type(norm))
            norm.group = name
    return model


def group_of(norm: nn.Module) -> str:
    """Return the name of the group over which a batch norm now computes its statistics; ``""``: this process alone."""
    if not (isinstance(norm, SyncBatchNorm2d) and norm.training):
        return ""
    return name_of_group(norm.group)


@torch.no_grad()
def update_running_statistics(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, count: int | Tensor) -> None:
    """Let the running statistics of a norm follow those of a batch of ``count`` values; the variance is biased."""
    if not norm.track_running_stats or norm.running_mean is None or norm.running_var is None:
        return
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked += 1
    momentum = norm.momentum if norm.momentum is not None else 1 / float(norm.num_batches_tracked)
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), momentum)
    norm.running_var.lerp_(variance.to(norm.running_var.dtype) * (count / (count - 1)), momentum)


def batch_statistics(x: Tensor, group: str) -> tuple[Tensor, Tensor, Tensor | int]:
    """Return mean and biased variance ``[C]`` of the channels of maps, in float32 at least, and the number of values.

    With a group they are those of all its processes: each computes sums by PyTorch's kernels, which are added in
    float64; the count is a tensor then.
    """
    channels, wide = x.shape[1], torch.promote_types(x.dtype, torch.float32)
    count = x.numel() // channels
    # Running statistics, which are not used, make it compute in their dtype.
    mean, variance = torch.ops.aten.batch_norm_update_stats(x, *x.new_zeros((2, channels), dtype=wide), 0.0)
    if not group:
        return mean, variance, count
    mean, variance = mean.double(), variance.double()
    moments = torch.cat([mean, variance + mean.square(), mean.new_ones(1)])
    sums = all_reduce(moments * count, group)
    mean, second = (sums[:-1] / sums[-1]).chunk(2)
    variance = (second - mean.square()).clamp(min=0)
    return mean.to(wide), variance.to(wide), sums[-1]


def batch_norm_gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    count: Tensor | int,
    eps: float,
    group: str,
    needs_x: bool = True,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Return the gradients of ``x``, weight and bias of a norm with the statistics of :func:`batch_statistics`.

    Weight and bias get this process's part of their gradients.
    """
    gamma = torch.ones_like(mean) if weight is None else weight.to(mean.dtype)
    backward = torch.ops.aten.native_batch_norm_backward
    if not group:
        deviation = torch.rsqrt(variance + eps)
        return backward(grad, x, gamma, None, None, mean, deviation, True, eps, [needs_x, True, True])
    # The gradients of a norm in eval mode: its parameters' are those of this norm.
    _, d_weight, d_bias = backward(grad, x, gamma, mean, variance, None, None, False, eps, [False, True, True])
    if not needs_x:
        return None, d_weight, d_bias
    by_value, by_one = (all_reduce(torch.cat([d_weight, d_bias]).double(), group) / count).chunk(2)
    deviation = torch.rsqrt(variance.double() + eps)
    factor = gamma * deviation
    slope = -factor * deviation * by_value
    offset = -factor * by_one - slope * mean
    factor, slope, offset = (t.to(mean.dtype)[:, None, None] for t in (factor, slope, offset))
    return torch.addcmul(offset, grad, factor).addcmul_(x, slope).to(x.dtype), d_weight, d_bias


class _Normalise(torch.autograd.Function):
    """Batch norm over the processes of a group: the output, and mean, biased variance and count of all values."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, group: str) -> tuple[Any, ...]:
        mean, variance, count = batch_statistics(x, group)
        weight, bias = (None if t is None else t.to(mean.dtype) for t in (weight, bias))
        y = F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)
        return y, mean, variance, count

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        x, weight, bias, ctx.eps, ctx.group = inputs
        _, mean, variance, count = output
        ctx.mark_non_differentiable(mean, variance, count)
        ctx.save_for_backward(x, weight, bias, mean, variance, count)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, variance, count = ctx.saved_tensors
        d_x, d_weight, d_bias = batch_norm_gradients(
            grad, x, weight, mean, variance, count, ctx.eps, ctx.group, ctx.needs_input_grad[0]
        )
        weight_grad = None if weight is None else d_weight.to(weight.dtype)
        bias_grad = None if bias is None else d_bias.to(bias.dtype)
        return d_x, weight_grad, bias_grad, None, None
