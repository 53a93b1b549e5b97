"""``mbconv_chain``: consecutive blocks of EfficientNet in one call."""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hyperseg.ops import reference
from hyperseg.ops._arguments import call, check_map, four_sides
from hyperseg.ops._chain import split_chain
from hyperseg.ops._registry import define, refuse_derivatives
from hyperseg.ops.mbconv import check_block, fake_block, flops_of_block, out_size

_NAME = "mbconv_chain"


class EncoderBlock(NamedTuple):
    """Arguments of :func:`hyperseg.ops.mbconv` besides the map."""

    expand: Tensor | None
    expand_bias: Tensor | None
    depthwise: Tensor
    depthwise_bias: Tensor
    reduce: Tensor
    reduce_bias: Tensor
    gate: Tensor
    gate_bias: Tensor
    project: Tensor
    project_bias: Tensor
    stride: int = 1
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    residual: bool = False


def _check(x, weights, expanded, strides, paddings, residuals, kept):
    count = len(strides)
    lengths = {
        "expanded": len(expanded),
        "paddings": len(paddings) // 4,
        "residuals": len(residuals),
        "kept": len(kept),
    }
    if not count or any(n != count for n in lengths.values()) or len(paddings) % 4:
        raise ValueError(
            f"{_NAME}: give at least one block, and for each a stride, four paddings and a flag in expanded, residuals "
            f"and kept; got {count} strides and {lengths}."
        )
    if len(weights) != (expected := sum(10 if e else 8 for e in expanded)):
        raise ValueError(
            f"{_NAME}: weights must be {expected} tensors, 8 per block and 2 more to expand, got {len(weights)}."
        )
    if not kept[-1]:
        raise ValueError(f"{_NAME}: the output of the last block must be kept.")
    check_map(_NAME, "x", x)
    for i, block in enumerate(split_chain(weights, expanded, strides, paddings, residuals)):
        try:
            check_block(x, *block)
        except (ValueError, TypeError) as error:
            raise type(error)(f"{_NAME}: block {i}: {error}") from None
        x = _map_like(x, _out_shape(x, block))


def _out_shape(x: Tensor, block: tuple[Any, ...]) -> tuple[int, ...]:
    depthwise, project, stride, padding = block[2], block[8], block[10], block[11]
    return (x.shape[0], project.shape[0], *out_size(x, depthwise.shape[1], stride, padding))


def _map_like(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return a map of this shape for checks, without memory of its own."""
    return x.as_strided(shape, (0, 0, 0, 0))


def _fake(x, weights, expanded, strides, paddings, residuals, kept):
    outputs = []
    for block, keep in zip(split_chain(weights, expanded, strides, paddings, residuals), kept, strict=True):
        x = fake_block(x, *block)
        if keep:
            outputs.append(x)
    return outputs


def _flops(x, weights, expanded, strides, paddings, residuals, kept, *args, out_shape=None, **kwargs):
    total = 0
    for block in split_chain(weights, expanded, strides, paddings, residuals):
        total += flops_of_block(x, *block)
        depthwise, project, stride, (left, right, top, bottom) = block[2], block[8], block[10], block[11]
        n, _, height, width = x
        size = depthwise[1]
        x = (n, project[0], (height + top + bottom - size) // stride + 1, (width + left + right - size) // stride + 1)
    return total


define(
    _NAME,
    "Tensor x, Tensor[] weights, int[] expanded, int[] strides, int[] paddings, int[] residuals, int[] kept",
    "Tensor[]",
    reference=reference.mbconv_chain,
    check=_check,
    fake=_fake,
    flops=_flops,
)
refuse_derivatives(_NAME, "this operator is for inference; train timm's modules, or differentiate the function of")


def mbconv_chain(x: Tensor, blocks: Sequence[EncoderBlock], kept: Collection[int] = ()) -> list[Tensor]:
    """Consecutive blocks as of :func:`hyperseg.ops.mbconv`, each of which takes the output of the one before.

    It takes less time than one call per block: on small maps a CUDA kernel runs all blocks in one launch, and on the
    CPU no thread falls asleep between blocks.
    For inference: a backward pass raises NotImplementedError.

    Args:
        x: ``[N, C, H, W]``, the input of the first block.
        kept: indices of blocks whose outputs are returned besides that of the last one.

    Returns:
        The outputs that are kept, in the order of the blocks.

    Raises:
        ValueError, TypeError: the shapes, dtypes or devices do not fit together.
    """
    if beyond := [i for i in kept if not 0 <= i < len(blocks)]:
        raise ValueError(f"{_NAME}: kept must be indices of the {len(blocks)} blocks, got {beyond}.")
    weights: list[Any] = []
    for block in blocks:
        weights += block[:10] if block.expand is not None else block[2:10]
    return call(
        torch.ops.hyperseg.mbconv_chain.default,
        x,
        weights,
        [int(block.expand is not None) for block in blocks],
        [block.stride for block in blocks],
        [side for block in blocks for side in four_sides(_NAME, block.padding)],
        [int(block.residual) for block in blocks],
        [int(i in kept or i == len(blocks) - 1) for i in range(len(blocks))],
    )
