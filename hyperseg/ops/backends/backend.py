"""The type of a backend."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Reasons = list[str]


def _no_reasons(*_: Any) -> Reasons:
    return []


@dataclass(frozen=True)
class Backend:
    """Implementations of some of the operators, for some machines and some arguments.

    Attributes:
        name: as ``use_backend`` and HYPERSEG_BACKEND take it.
        description: a few words for ``python -m hyperseg.info``.
        supported: by operator, a function with the arguments of the operator's schema. An operator that is not in the
            table is not supported.
        unavailable_reasons: return what this machine lacks; empty if the backend can run here.
        call_reasons: ``(operator, args)`` -> why it does not support these arguments; empty if it does. Called only
            for supported operators, on a machine where the backend is available.
    """

    name: str
    description: str
    supported: Mapping[str, Callable[..., Any]]
    unavailable_reasons: Callable[[], Reasons] = _no_reasons
    call_reasons: Callable[[str, tuple[Any, ...]], Reasons] = _no_reasons

    def lacks(self, operator: str) -> Reasons:
        """Return why no call of this operator runs here, whatever its arguments; empty if some do."""
        if missing := self.unavailable_reasons():
            return missing
        return [] if operator in self.supported else [f"it has no implementation of {operator}"]

    def not_supported_reasons(self, operator: str, args: tuple[Any, ...]) -> Reasons:
        """Return every reason why this backend does not support this call; empty if it does."""
        return self.lacks(operator) or self.call_reasons(operator, args)


def device_type(args: tuple[Any, ...]) -> str:
    """The device type of a call."""
    return device_of(args).type


def device_of(args: tuple[Any, ...]) -> torch.device:
    """The device of a call: that of its first tensor. All tensors of a call are on one device."""
    for argument in args:  # runs on every call: a loop is faster than a generator
        if isinstance(argument, Tensor):
            return argument.device
        if isinstance(argument, list) and argument and isinstance(argument[0], Tensor):
            return argument[0].device
    raise TypeError("a call of an operator has at least one tensor")


def any_of_dtype(dtype: torch.dtype, args: tuple[Any, ...]) -> bool:
    """Whether any tensor of a call has this dtype. The first argument may be uint8 frames; a list has one dtype."""
    firsts = (a[0] if isinstance(a, list) and a else a for a in args)
    return any(isinstance(a, Tensor) and a.dtype == dtype for a in firsts)


def level_then_argmax(level: Callable[..., Tensor], argmax: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``decoder_level_argmax`` for a backend without a fused kernel for it: two launches, with the scores in memory."""
    return lambda skip, *args: argmax(level(skip, *args), *skip.shape[2:])
