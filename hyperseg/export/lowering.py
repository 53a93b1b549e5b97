"""Our operators as standard ones that ONNX Runtime, OpenVINO and TensorRT take, for a program of torch.export.

The 1x1 steps of a decoder level are batched matrix products of the patches. For the depthwise 3x3 step, whose weights
are another tensor for every patch, there are two forms.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.export import ExportedProgram

from hyperseg.ops import OPERATORS, reference

LOWERINGS = ("conv", "multiply")


def lower(program: ExportedProgram, lowering: str) -> ExportedProgram:
    """Replace HyperSeg's operators in a program: those of decoder levels by this file, others by their reference."""
    level = {torch.ops.hyperseg.decoder_level.default: functools.partial(_decoder_level, lowering)}
    return program.run_decompositions(definitions() | level)


def definitions() -> dict[Any, Callable[..., Any]]:
    """Return the operators of inference and training's forward pass, each with its definition in plain PyTorch."""
    forward = [name for name in OPERATORS if not name.endswith("_backward")]
    return {getattr(torch.ops.hyperseg, name).default: getattr(reference, name) for name in forward}


def _decoder_level(
    lowering: str,
    skip: Tensor,
    previous: Tensor | None,
    signal: Tensor | None,
    generator: Tensor | None,
    weights: Tensor | None,
    bias: Tensor,
    offset: int,
    groups: int,
    out_channels: int,
    hidden: int,
    halo: str,
) -> Tensor:
    """Compute :func:`hyperseg.ops.reference.decoder_level`; the depthwise step by ``lowering``."""
    x, weights = reference.level_operands(
        skip, previous, signal, generator, weights, offset, groups, out_channels, hidden
    )
    n, fh, fw, _ = weights.shape
    grid = (fh, fw)
    shifts = bias.to(x.dtype)[:, None, None]
    if not hidden:
        weights = weights.reshape(-1, out_channels, x.shape[1])
        y = reference.from_patches(reference.pointwise(reference.to_patches(x, grid), weights), n, grid)
        return F.relu(y + shifts)
    # Slices, because the optimiser folds those of stored tensors, and no Split.
    channels, flat = x.shape[1], weights.reshape(-1, weights.shape[-1])
    first, second = channels * hidden, (channels + 9) * hidden
    expand = flat[:, :first].reshape(-1, hidden, channels)
    # Not of `flat`: OpenVINO makes one split of slices that cover a tensor, and its passes for quantised models do not
    # take the weights of a convolution from a node with several outputs.
    depthwise = weights[..., first:second].reshape(-1, hidden, 9)
    project = flat[:, second:].reshape(-1, out_channels, hidden)
    shift1, shift2, shift3 = shifts[:hidden], shifts[hidden : 2 * hidden], shifts[2 * hidden :]
    if halo == "own":
        a = F.relu6(reference.pointwise(reference.to_windows(x, grid, (1, 1)), expand) + shift1)
    else:
        full = reference.from_patches(reference.pointwise(reference.to_patches(x, grid), expand), n, grid)
        a = reference.to_windows(F.relu6(full + shift1), grid, (1, 1))
    step = reference.depthwise3x3 if lowering == "conv" else _depthwise_by_products
    return reference.from_patches(reference.pointwise(F.relu6(step(a, depthwise) + shift2), project) + shift3, n, grid)


def _depthwise_by_products(windows: Tensor, weight: Tensor) -> Tensor:
    """Compute :func:`hyperseg.ops.reference.depthwise3x3` as nine products of shifted maps."""
    height, width = windows.shape[2] - 2, windows.shape[3] - 2
    total: Tensor | None = None
    for tap in range(9):
        row, column = divmod(tap, 3)
        product = windows[:, :, row : row + height, column : column + width] * weight[:, :, tap, None, None]
        total = product if total is None else total + product
    assert total is not None
    return total
