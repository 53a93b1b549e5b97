"""Which code serves an operator: backends, the reasons why one cannot, and the choice among them.

A backend is a name and a table of implementations. Every implementation has the signature of its operator's schema
and answers, for the very arguments of a call, why it cannot take them. Chosen automatically, a backend with reasons is
passed over (logged once, at level DEBUG, under ``hyperseg.ops``); named by the user, its reasons are raised.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from torch import Tensor

from hyperseg.ops.preference import OTHER_DEVICES as OTHER_DEVICES
from hyperseg.ops.preference import PREFERENCE as PREFERENCE
from hyperseg.ops.preference import order

logger = logging.getLogger("hyperseg.ops")


class BackendError(RuntimeError):
    """The backend that was asked for cannot serve this call; the message says why and what would."""


@dataclass(frozen=True)
class Implementation:
    """One operator of one backend. ``objections(*args)`` lists the reasons against these arguments."""

    function: Callable
    objections: Callable[..., list[str]] = lambda *args: []


@dataclass
class Backend:
    """``unavailable()`` lists what is missing on this machine, apart from any call's arguments."""

    name: str
    description: str
    unavailable: Callable[[], list[str]]
    implementations: dict[str, Implementation] = field(default_factory=dict)

    def objections(self, operator: str, device_type: str, args: tuple) -> list[str]:
        """Every reason why this backend cannot serve this call; empty if it can."""
        missing = self.unavailable()
        if missing:
            return missing
        if operator not in self.implementations:
            return [f"it has no implementation of {operator}"]
        return self.implementations[operator].objections(*args)


# The operators that every compiled backend has kernels for.
WITH_KERNELS = (
    "decoder_level",
    "decoder_level_backward",
    "generate_weights",
    "generate_weights_backward",
    "mbconv",
    "patch_conv2d",
    "patch_conv2d_backward",
    "patch_inverted_residual",
    "patch_inverted_residual_backward",
    "patch_inverted_residual_batch_norm",
    "patch_inverted_residual_batch_norm_backward",
    "stem",
    "upsample_argmax",
    "upsample_cross_entropy",
    "upsample_cross_entropy_backward",
)

BACKENDS: dict[str, Backend] = {}


def register(backend: Backend) -> Backend:
    """Make ``backend`` known under its name."""
    BACKENDS[backend.name] = backend
    return backend


_named: list[str] = []  # process-wide, not per thread: backward passes run on autograd's own threads
_logged: set[tuple[str, str, str]] = set()


def _known(name: str) -> str:
    if name not in BACKENDS:
        raise BackendError(f"There is no backend {name!r}; the backends are auto, {', '.join(BACKENDS)}.")
    return name


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Serve every operator with this backend, in the whole process, or raise its reasons.

    Args:
        name: ``"reference"``, ``"cpp"``, ``"triton"`` or ``"cuda"``; ``"auto"`` returns to the automatic choice.
    """
    _named.append(name if name == "auto" else _known(name))
    try:
        yield
    finally:
        _named.pop()


def named_backend() -> str | None:
    """The backend named by ``use_backend`` or, failing that, by HYPERSEG_BACKEND; None for the automatic choice."""
    name = _named[-1] if _named else os.environ.get("HYPERSEG_BACKEND", "auto")
    return None if name == "auto" else _known(name)


def select(operator: str, *args) -> Implementation:
    """The implementation that serves ``operator`` for these arguments.

    Raises:
        BackendError: the named backend has objections; the message lists them and which backends have none.
    """
    device_type = next(a for a in args if isinstance(a, Tensor)).device.type
    name = named_backend()
    if name is not None:
        reasons = BACKENDS[name].objections(operator, device_type, args)
        if reasons:
            raise BackendError(_refusal(name, operator, device_type, args, reasons))
        return BACKENDS[name].implementations[operator]
    for candidate in order(operator, device_type):
        reasons = BACKENDS[candidate].objections(operator, device_type, args)
        if not reasons:
            return BACKENDS[candidate].implementations[operator]
        _log_once(candidate, operator, reasons)
    raise BackendError(f"No backend serves {operator} on {device_type}.")


def chosen(operator: str, device_type: str) -> tuple[str, dict[str, list[str]]]:
    """For ``python -m hyperseg.info``: which backend ``auto`` takes on this kind of device, and why not the others."""
    why: dict[str, list[str]] = {}
    for candidate in order(operator, device_type):
        reasons = BACKENDS[candidate].unavailable()
        if not reasons and operator not in BACKENDS[candidate].implementations:
            reasons = [f"it has no implementation of {operator}"]
        if not reasons:
            return candidate, why
        why[candidate] = reasons
    return "none", why


def has_kernel(operator: str, device_type: str) -> bool:
    """Whether ``auto`` serves the operator by more than its plain PyTorch definition on this kind of device."""
    return chosen(operator, device_type)[0] not in ("reference", "none")


def compiled(call: Callable[[str], Callable], objections: Callable[..., list[str]]) -> dict[str, Implementation]:
    """What a compiled backend serves: ``call(name)`` for each operator that has kernels everywhere.

    ``decoder_level_argmax`` is its level, then the labels of that; a backend with a kernel for it puts that in place.
    """
    found = {name: Implementation(call(name), objections) for name in WITH_KERNELS}
    level, labels = found["decoder_level"].function, found["upsample_argmax"].function
    found["decoder_level_argmax"] = Implementation(
        lambda skip, *args: labels(level(skip, *args), *skip.shape[2:]), objections
    )
    return found


def _refusal(name: str, operator: str, device_type: str, args: tuple, reasons: list[str]) -> str:
    able = [b.name for b in BACKENDS.values() if not b.objections(operator, device_type, args)]
    shapes = ", ".join(f"{tuple(a.shape)} {str(a.dtype)[6:]} {a.device}" for a in args if isinstance(a, Tensor))
    lines = "".join(f"\n  - {reason}" for reason in reasons)
    return f"The backend {name!r} cannot serve {operator} of {shapes}:{lines}\nBackends that can: {', '.join(able)}."


def _log_once(name: str, operator: str, reasons: list[str]) -> None:
    if not logger.isEnabledFor(logging.DEBUG):
        return
    key = (name, operator, "; ".join(reasons))
    if key not in _logged:
        _logged.add(key)
        logger.debug("%s passed over for %s: %s", *key)
