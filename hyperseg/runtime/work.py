"""The least that a call of an operator does: bytes of its inputs and outputs, and FLOPs."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from hyperseg.ops import LevelArguments

LEVELS = ("decoder_level", "decoder_level_argmax")


def tensor_bytes(tensors: Iterable[object]) -> int:
    """Return the bytes of the elements of distinct tensors; expanded dimensions count once, gaps do not count."""
    seen: set[tuple[int, int | torch.SymInt, torch.Size]] = set()
    total = 0
    for t in tensors:
        if not isinstance(t, Tensor):
            continue
        key = (t.untyped_storage()._cdata, t.storage_offset(), t.shape)
        if key in seen:
            continue
        seen.add(key)
        elements = 1
        for length, stride in zip(t.shape, t.stride(), strict=True):
            elements *= length if stride != 0 else 1
        total += elements * t.element_size()
    return total


def least_bytes(operator: str, arguments: Sequence[Any], output: Any) -> int:
    """Return the bytes of a call's inputs and outputs, once each; of a signal only the channels that are used."""
    arguments = list(arguments)
    if operator in LEVELS:
        level = LevelArguments(*arguments)
        if level.signal is not None and level.generator is not None:
            used = level.signal[:, level.offset : level.offset + level.generator.shape[1] * level.groups]
            arguments = list(level._replace(signal=used))
    elif operator == "generate_weights":
        signal, generators, offsets, groups, _ = arguments
        ends = [o + g.shape[1] * n for g, o, n in zip(generators, offsets, groups, strict=True)]
        arguments[0] = signal[:, min(offsets) : max(ends)]
    return tensor_bytes(tree_leaves(arguments)) + tensor_bytes(tree_leaves(output))


def flops(operator: str, arguments: Sequence[Any], output: Any) -> int | None:
    """Return a call's floating-point operations, two per multiply-add; None if the operator has no formula."""
    formula = flop_registry.get(getattr(torch.ops.hyperseg, operator))
    return None if formula is None else int(formula(*arguments, out_val=output))
