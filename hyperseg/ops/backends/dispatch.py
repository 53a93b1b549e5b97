"""The choice of a backend for each call: the order in which ``auto`` tries them, ``use_backend``, and error messages.

``auto`` runs a call by the first backend in the order that supports it and whose kernel neither the verification nor an
engine has found wrong on this machine (``verdicts.py``). It logs once, at level DEBUG under
``hyperseg.ops``, which backends it passed over and why. A backend named by the user runs the call or raises an error.
``use_backend`` names it for one thread, HYPERSEG_BACKEND for the process.
"""

import contextlib
import functools
import logging
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from hyperseg.ops.backends import caller
from hyperseg.ops.backends.backend import Backend, Reasons, device_type
from hyperseg.ops.backends.cpp import CPP
from hyperseg.ops.backends.cuda import CUDA
from hyperseg.ops.backends.reference import REFERENCE
from hyperseg.ops.backends.triton import TRITON
from hyperseg.ops.backends.verdicts import PASSED_OVER

logger = logging.getLogger("hyperseg.ops")

BACKENDS: dict[str, Backend] = {backend.name: backend for backend in (CPP, CUDA, TRITON, REFERENCE)}

# The order by device type. Measured, not assumed: `python bench/ops.py --model all --backward --json ops.json`, then
# `python bench/preference.py ops.json`, which fails where this order disagrees. So do the tests, for bench/results.
PREFERENCE: dict[str, tuple[str, ...]] = {
    "cpu": ("cpp", "reference"),
    "cuda": ("cuda", "triton", "reference"),
}
OTHER_DEVICES = ("reference",)

# (device type, operator): where an operator's order is not that of its device. There is none at present: on a GPU each
# operator rests on counts of machine code, in docs/kernels/triton.md ("Triton or CUDA C++"), until one is measured.
EXCEPTIONS: dict[tuple[str, str], tuple[str, ...]] = {}


class BackendError(RuntimeError):
    """The named backend does not support this call; the message lists the reasons, and the backends that do."""


class _Block:
    """A ``with use_backend(name)`` block; the name is None for the automatic choice."""

    def __init__(self, name: str) -> None:
        self.name = None if name == "auto" else _known(name)


_open: set[_Block] = set()  # of all threads: if it is empty, a call need not look at its own thread's
_BLOCKS = "hyperseg.use_backend"  # the calling thread's blocks, a tuple with the innermost last
_logged: set[tuple[str, str, str]] = set()

Call = Callable[..., Any]  # (operator, *args) -> output
_watching = 0  # open ``watch`` blocks of all threads: if there are none, a call need not look at its own thread's
_watch_lock = threading.Lock()
_watched = threading.local()


def order(operator: str, device: str) -> tuple[str, ...]:
    """The backends that ``auto`` tries for ``operator`` on this device type, the preferred one first."""
    return EXCEPTIONS.get((device, operator)) or PREFERENCE.get(device, OTHER_DEVICES)


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run every operator by this backend; a call it does not support raises BackendError.

    It holds for the thread that enters the block, and for the backward passes which that thread starts inside. Threads
    started inside do not inherit it; HYPERSEG_BACKEND holds for the whole process. Inside a function for
    ``torch.compile`` the block is a graph break.

    Args:
        name: ``"reference"``, ``"cpp"``, ``"triton"`` or ``"cuda"``; ``"auto"`` returns to the automatic choice.

    Raises:
        BackendError: there is no backend of this name.
    """
    block = _Block(name)
    _open.add(block)
    caller.put(_BLOCKS, (*_blocks(), block))
    try:
        yield
    finally:
        # The block ends by leaving the set, because generators may end blocks in any order, and on another thread.
        _open.discard(block)
        caller.put(_BLOCKS, tuple(b for b in _blocks() if b in _open))


def named_backend() -> str | None:
    """The backend named by ``use_backend`` or, failing that, by HYPERSEG_BACKEND; None for the automatic choice."""
    # Runs on every call of an operator, and most processes have no open block.
    if _open and caller.has(_BLOCKS):
        for block in reversed(caller.get(_BLOCKS)):
            if block in _open:
                return block.name
    name = os.environ.get("HYPERSEG_BACKEND", "auto")
    return None if name == "auto" else _known(name)


def _blocks() -> tuple[_Block, ...]:
    return caller.get(_BLOCKS) if caller.has(_BLOCKS) else ()


@contextlib.contextmanager
def watch(call: Call) -> Iterator[None]:
    """Run every operator that this thread calls inside by ``call(operator, *args)``, once its arguments are checked.

    It returns the operator's output, by :func:`decide`. Operators that it calls itself are not watched. Of nested
    blocks the innermost counts.
    """
    global _watching

    def alone(*args: Any) -> Any:
        _watched.call = None
        try:
            return call(*args)
        finally:
            _watched.call = alone

    before = getattr(_watched, "call", None)
    with _watch_lock:
        _watching += 1
    _watched.call = alone
    try:
        yield
    finally:
        _watched.call = before
        with _watch_lock:
            _watching -= 1


def select(operator: str, args: tuple[Any, ...]) -> Callable[..., Any]:
    """Return the function that runs ``operator`` for these arguments.

    Raises:
        BackendError: the named backend does not support the call, or HYPERSEG_BACKEND names no backend.
    """
    if _watching and (call := getattr(_watched, "call", None)) is not None:
        return functools.partial(call, operator)
    return decide(operator, args)[1]


def decide(operator: str, args: tuple[Any, ...]) -> tuple[str, Callable[..., Any], dict[str, Reasons]]:
    """Return the backend that runs ``operator`` for these arguments, its function, and why not those before it.

    Raises:
        BackendError: the named backend does not support the call, or HYPERSEG_BACKEND names no backend.
    """
    name = named_backend()
    if name is not None:
        if reasons := BACKENDS[name].not_supported_reasons(operator, args):
            raise BackendError(_message(name, operator, args, reasons))
        return name, BACKENDS[name].supported[operator], {}
    device = device_type(args)
    excluded = PASSED_OVER[device]
    refused: dict[str, Reasons] = {}
    for candidate in order(operator, device):
        backend = BACKENDS[candidate]
        if excluded and (operator, candidate) in excluded:
            reasons = [excluded[operator, candidate]]
        elif not (reasons := backend.not_supported_reasons(operator, args)):
            return candidate, backend.supported[operator], refused
        _log_once(candidate, operator, reasons)
        refused[candidate] = reasons
    raise BackendError(f"No backend supports {operator} on {device}.")


def chosen(operator: str, device: str) -> tuple[str, dict[str, Reasons]]:
    """Return the backend that ``auto`` takes on this device type, and why not those before it in the order.

    The name is ``"none"`` if no backend supports the operator there.
    """
    passed_over: dict[str, Reasons] = {}
    for candidate in order(operator, device):
        reasons = BACKENDS[candidate].lacks(operator)
        if not reasons and (verdict := PASSED_OVER[device].get((operator, candidate))):
            reasons = [verdict]
        if not reasons:
            return candidate, passed_over
        passed_over[candidate] = reasons
    return "none", passed_over


def has_kernel(operator: str, device: str) -> bool:
    """Whether ``auto`` runs the operator by more than its plain PyTorch definition on this device type."""
    return chosen(operator, device)[0] not in ("reference", "none")


def _known(name: str) -> str:
    if name not in BACKENDS:
        raise BackendError(f"There is no backend {name!r}; the backends are auto, {', '.join(BACKENDS)}.")
    return name


def _message(name: str, operator: str, args: tuple[Any, ...], reasons: Reasons) -> str:
    able = [b.name for b in BACKENDS.values() if not b.not_supported_reasons(operator, args)]
    shapes = ", ".join(f"{tuple(a.shape)} {str(a.dtype)[6:]} {a.device}" for a in args if isinstance(a, Tensor))
    lines = "".join(f"\n  - {reason}" for reason in reasons)
    return f"The backend {name!r} does not support {operator} of {shapes}:{lines}\nBackends that do: {', '.join(able)}."


def _log_once(name: str, operator: str, reasons: Reasons) -> None:
    if not logger.isEnabledFor(logging.DEBUG):
        return
    key = (name, operator, "; ".join(reasons))
    if key not in _logged:
        _logged.add(key)
        logger.debug("%s passed over for %s: %s", *key)
