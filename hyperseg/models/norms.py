"""Batch norms: which statistics one uses, and its affine map for folding."""

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm


def uses_batch_statistics(norm: Any) -> bool:
    """Return whether a batch norm computes mean and variance of its input: in training, and without running ones."""
    return norm.training or (norm.running_mean is None and norm.running_var is None)


def is_foldable(norm: Any) -> bool:
    """Return whether a norm is the map of :func:`fold_affine`: a batch norm of PyTorch with running statistics."""
    standard = type(norm).forward in (nn.BatchNorm2d.forward, nn.SyncBatchNorm.forward)
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
