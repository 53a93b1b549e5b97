"""One check: a case on a kernel, compared with the reference in float64 on the CPU from equal, rounded arguments."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hyperseg.ops import BACKENDS, reference
from hyperseg.ops._layout import resize_logits
from hyperseg.verify.arguments import Case, backward_arguments, convert, double, flat
from hyperseg.verify.comparison import FORWARD, GRADIENT, Difference, compare, compare_labels


def prepare(operator: str, case: Case, dtype: torch.dtype) -> tuple[tuple, Callable[[list[Tensor]], Difference]]:
    """Return arguments on the CPU, and a function that compares the operator's outputs for them with the reference."""
    forward = operator == case.operator
    args = case.arguments(dtype) if forward else backward_arguments(case, dtype, "cpu")
    exact = double(args)
    if operator == "upsample_argmax":
        scores = resize_logits(*exact)
        return args, lambda outputs: compare_labels(outputs[0], scores, torch.promote_types(dtype, torch.float32))
    if operator == "decoder_level_argmax":
        scores = reference.decoder_level(*exact)
        return args, lambda outputs: compare_labels(outputs[0], scores, dtype)
    definition: Any = BACKENDS["reference"].supported[operator]
    expected = flat((definition if forward else definition.by_autograd)(*exact))
    tolerance = (FORWARD if forward else GRADIENT)[dtype]

    def compare_all(outputs: list[Tensor]) -> Difference:
        if len(outputs) != len(expected):
            return Difference(problem=f"{len(outputs)} outputs, expected {len(expected)}")
        return worst([compare(a, e, tolerance) for a, e in zip(outputs, expected, strict=True)])

    return args, compare_all


def run_twice(function: Callable[..., Any], args: tuple, device: torch.device) -> tuple[list[Tensor], Difference]:
    """Return the outputs on the CPU. There is a problem if a second run gives others: kernels are deterministic."""
    there = tuple(convert(a, _dtype_of(a), str(device)) for a in args)
    first, second = ([t.cpu() for t in flat(function(*there))] for _ in range(2))
    equal = len(first) == len(second) and all(_equal(a, b) for a, b in zip(first, second, strict=True))
    return first, Difference(problem="" if equal else "a second run gives another output")


def worst(differences: list[Difference]) -> Difference:
    """Return the first difference with a problem, else the one with the largest error."""
    for difference in differences:
        if difference.problem:
            return difference
    return max(differences, key=lambda d: d.error, default=Difference())


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def _dtype_of(value: Any) -> torch.dtype | None:
    """The floating-point dtype of an argument, as ``convert`` takes it."""
    first = value[0] if isinstance(value, list) and value else value
    return first.dtype if isinstance(first, Tensor) and first.is_floating_point() else None
