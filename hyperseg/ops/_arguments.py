"""Checks of an operator's arguments: error messages that say what was wrong, what was expected and what to do.

:func:`call` checks types against the schema; the other functions check values and shapes.
"""

import operator
from typing import Any

import torch
from torch import Tensor

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
LARGEST = 2**24  # side of a map or image: exact in float32, and products of two sides fit 64 bits

_DESCRIPTIONS = {
    "Tensor": "a tensor",
    "int": "an integer",
    "float": "a number",
    "bool": "True or False",
    "str": "a string",
}
_TYPES: dict[str, tuple[type, ...]] = {
    "Tensor": (Tensor,),
    "int": (int, torch.SymInt),
    "float": (int, float, torch.SymInt, torch.SymFloat),
    "bool": (bool, torch.SymBool),
    "str": (str,),
}

# ---------------------------------------------------------------------------------------------------------------------
# Types


def call(operator: Any, *args: Any) -> Any:
    """Return ``operator(*args)``.

    Raises:
        TypeError: an argument is not of the type in the operator's schema; the message names it.
    """
    try:
        return operator(*args)
    except (RuntimeError, TypeError):
        if message := _wrong_type(operator._schema, args):
            raise TypeError(message) from None
        raise


def _wrong_type(schema: Any, args: tuple[Any, ...]) -> str:
    operator = schema.name.split("::")[1]
    for argument, value in zip(schema.arguments, args, strict=True):
        kind = str(argument.type).replace("SymInt", "int")
        if not _fits(kind, value):
            return f"{operator}: {argument.name} must be {_description(kind)}, got {describe(value)}."
    return ""


def _fits(kind: str, value: Any) -> bool:
    if kind.startswith("Optional["):
        return value is None or _fits(kind[9:-1], value)
    if kind.startswith("List["):
        return isinstance(value, tuple | list) and all(_fits(kind[5:-1], v) for v in value)
    # Sizes are 64-bit integers.
    return isinstance(value, _TYPES[kind]) and not (type(value) is int and abs(value) >= 2**63)


def _description(kind: str) -> str:
    if kind.startswith("Optional["):
        return f"{_description(kind[9:-1])} or None"
    if kind.startswith("List["):
        return f"a list of {_description(kind[5:-1]).split(maxsplit=1)[1]}s"
    return _DESCRIPTIONS[kind]


def describe(value: Any) -> str:
    """A few words about a value: the shape of a tensor; the type, without values, of an array."""
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)}"
    plain = int | float | str | tuple | list | torch.dtype | torch.device | None
    if isinstance(value, plain) and len(repr(value)) <= 60:
        return repr(value)
    return f"{type(value).__module__}.{type(value).__name__}".removeprefix("builtins.")


# ---------------------------------------------------------------------------------------------------------------------
# Numbers


def as_int(value: Any) -> int | None:
    """An integer, also NumPy's or a tensor of no dimensions; None for anything else, such as True, 2.0 and "2"."""
    if isinstance(value, int | torch.SymInt) and not isinstance(value, bool):
        return value  # type: ignore[return-value]
    if isinstance(value, Tensor):
        integer = value.dim() == 0 and not (
            value.is_floating_point() or value.is_complex() or value.dtype == torch.bool
        )
        return int(value) if integer else None
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def two_ints(operator: str, name: str, value: Any, meaning: str) -> list[int]:
    """Two integers as a list."""
    if isinstance(value, tuple | list) and len(value) == 2:
        return list(value)
    raise ValueError(f"{operator}: {name} must be {meaning}, got {describe(value)}.")


def int_or_pair(operator: str, name: str, value: Any) -> list[int]:
    """(vertical, horizontal) as a list; one integer stands for both."""
    if isinstance(value, int | torch.SymInt):
        return [value, value]  # type: ignore[list-item]
    return two_ints(operator, name, value, "an integer or (vertical, horizontal)")


def four_sides(operator: str, padding: Any) -> list[int]:
    """(left, right, top, bottom) as a list."""
    if isinstance(padding, tuple | list) and len(padding) == 4:
        return list(padding)
    raise ValueError(f"{operator}: padding must be (left, right, top, bottom), got {describe(padding)}.")


def check_positive(operator: str, **values: int) -> None:
    """Integers of at least 1."""
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{operator}: {name} must be at least 1, got {value}.")


def check_choice(operator: str, name: str, value: str, choices: tuple[str, ...]) -> None:
    """A string that is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{operator}: {name} must be one of {', '.join(map(repr, choices))}, got {value!r}.")


# ---------------------------------------------------------------------------------------------------------------------
# Tensors


def check_map(operator: str, name: str, value: Tensor, layout: str = "[N, C, H, W]") -> None:
    """A dense floating-point tensor of four dimensions, none of them empty."""
    if value.dim() != 4:
        raise ValueError(f"{operator}: {name} must be {layout}, got {value.dim()} dimensions: {tuple(value.shape)}.")
    if value.layout != torch.strided:
        raise TypeError(f"{operator}: {name} must be a dense tensor, got {value.layout}; call .to_dense().")
    if value.dtype not in FLOATING:
        raise TypeError(
            f"{operator}: {name} must be floating point, got {value.dtype}; convert it to float16, bfloat16, float32 "
            "or float64."
        )
    if 0 in value.shape:
        raise ValueError(f"{operator}: {name} must not be empty, got shape {tuple(value.shape)}.")


def check_same_kind(operator: str, **tensors: Tensor | None) -> None:
    """All on one device and of one dtype; None is skipped."""
    given = {name: t for name, t in tensors.items() if t is not None}
    first_name, first = next(iter(given.items()))
    for name, value in given.items():
        if value.device != first.device:
            raise ValueError(
                f"{operator}: {name} is on {value.device} but {first_name} on {first.device}; move them together."
            )
        if value.dtype != first.dtype:
            raise TypeError(
                f"{operator}: {name} is {value.dtype} but {first_name} {first.dtype}; convert one to the other."
            )


def check_vector(operator: str, name: str, value: Tensor | None, length: int, meaning: str) -> None:
    """A 1-d tensor of this length; None passes."""
    if value is not None and (value.dim() != 1 or value.shape[0] != length):
        raise ValueError(f"{operator}: {name} must be [{length}] ({meaning}), got {list(value.shape)}.")


def check_patch_weights(operator: str, weights: Tensor, x: Tensor, parameters: int, meaning: str) -> None:
    """``weights`` is ``[N, fh, fw, parameters]`` and its grid divides the map ``x``."""
    check_map(operator, "weights", weights, "[N, fh, fw, P]")
    if weights.shape[0] != x.shape[0]:
        raise ValueError(
            f"{operator}: weights are for {weights.shape[0]} images but the map has {x.shape[0]}; the first dimensions "
            "must agree."
        )
    if weights.shape[3] != parameters:
        raise ValueError(
            f"{operator}: weights have {weights.shape[3]} parameters per patch, expected {parameters} = {meaning}."
        )
    check_grid(operator, weights.shape[1], weights.shape[2], x)


def check_grid(operator: str, fh: int, fw: int, x: Tensor) -> None:
    """The map divides into a grid of fh x fw patches."""
    height, width = x.shape[2:]
    if height % fh or width % fw:
        raise ValueError(
            f"{operator}: a map of {height}x{width} pixels does not divide into {fh}x{fw} patches; "
            "pad it to a multiple of the grid."
        )


def check_reflection(operator: str, x: Tensor, halo: tuple[int, int]) -> None:
    """The map is large enough to be reflected by ``halo`` pixels at its border."""
    height, width = x.shape[2:]
    if height <= halo[0] or width <= halo[1]:
        raise ValueError(
            f"{operator}: the map is {height}x{width} pixels, too small to reflect {halo[0]}x{halo[1]} at its border; "
            "use a larger image."
        )
