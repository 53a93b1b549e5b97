"""Operators called by people: arguments of a wrong type are answered by name, not in words of torch's dispatcher."""

from typing import Any

import torch
from torch import Tensor

_WORDS = {"Tensor": "a tensor", "int": "an integer", "float": "a number", "bool": "True or False", "str": "a string"}
_TYPES: dict[str, tuple[type, ...]] = {
    "Tensor": (Tensor,),
    "int": (int, torch.SymInt),
    "float": (int, float, torch.SymInt, torch.SymFloat),
    "bool": (bool, torch.SymBool),
    "str": (str,),
}


def call(operator: Any, *args: Any) -> Any:
    """``operator(*args)``.

    Raises:
        TypeError: an argument is not of the type that the operator's schema says.
    """
    try:
        return operator(*args)
    except (RuntimeError, TypeError):
        if sentence := _mistyped(operator._schema, args):
            raise TypeError(sentence) from None
        raise


def pair(operator: str, name: str, value: Any) -> list[int]:
    """Two integers, (vertical, horizontal), of which one number stands for both."""
    if isinstance(value, int | torch.SymInt):
        return [value, value]  # type: ignore[list-item]
    return two(operator, name, value, "an integer or (vertical, horizontal)")


def two(operator: str, name: str, value: Any, meaning: str) -> list[int]:
    """Two integers."""
    if isinstance(value, tuple | list) and len(value) == 2:
        return list(value)
    raise ValueError(f"{operator}: {name} must be {meaning}, got {shown(value)}.")


def sides(operator: str, padding: Any) -> list[int]:
    """Four integers."""
    if isinstance(padding, tuple | list) and len(padding) == 4:
        return list(padding)
    raise ValueError(f"{operator}: padding must be (left, right, top, bottom), got {shown(padding)}.")


def _mistyped(schema: Any, args: tuple) -> str:
    operator = schema.name.split("::")[1]
    for argument, value in zip(schema.arguments, args, strict=True):
        kind = str(argument.type).replace("SymInt", "int")
        if not _fits(kind, value):
            return f"{operator}: {argument.name} must be {_described(kind)}, got {shown(value)}."
    return ""


def _fits(kind: str, value: Any) -> bool:
    if kind.startswith("Optional["):
        return value is None or _fits(kind[9:-1], value)
    if kind.startswith("List["):
        return isinstance(value, tuple | list) and all(_fits(kind[5:-1], v) for v in value)
    # Sizes are counted in 64 bits.
    return isinstance(value, _TYPES[kind]) and not (type(value) is int and abs(value) >= 2**63)


def _described(kind: str) -> str:
    if kind.startswith("Optional["):
        return f"{_described(kind[9:-1])} or None"
    if kind.startswith("List["):
        return f"a list of {_described(kind[5:-1]).split(maxsplit=1)[1]}s"
    return _WORDS[kind]


def shown(value: Any) -> str:
    """In a few words: of tensors their shape, of arrays, which would print what they hold, only the type."""
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)}"
    if isinstance(value, int | float | str | tuple | list | None) and len(repr(value)) <= 60:
        return repr(value)
    return f"{type(value).__module__}.{type(value).__name__}".removeprefix("builtins.")
