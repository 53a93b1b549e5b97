"""Which backend runs where: test parameters made from the registry, so that a backend is tested by being listed."""

import functools
from collections.abc import Iterable
from dataclasses import dataclass

import pytest
import torch

from hyperseg.ops import BACKENDS, backends, native, triton
from tests.ops.cases import Case, interpreted


@dataclass(frozen=True)
class Target:
    """A backend on a kind of device."""

    backend: str
    device: str

    @property
    def id(self) -> str:
        return f"{self.backend}-{self.device}"

    @property
    def marks(self) -> list:
        return [pytest.mark.gpu] if self.device == "cuda" else []

    @functools.cache  # noqa: B019 - a handful of targets, kept anyway
    def reasons(self, operator: str) -> list[str]:
        """Why it serves no call of this operator here, whatever the arguments."""
        if self.device == "cuda" and not torch.cuda.is_available():
            return ["this machine has no CUDA device that PyTorch can use"]
        if missing := BACKENDS[self.backend].unavailable():
            return missing
        served = BACKENDS[self.backend].implementations
        return [] if operator in served else [f"it has no implementation of {operator}"]

    def serve(self, operator: str, args: tuple):
        """The operator's answer from this backend; skips with the backend's objections to these arguments."""
        skip_objections(self, operator, args)
        with backends.use_backend(self.backend):
            return getattr(torch.ops.hyperseg, operator).default(*args)


def skip_objections(target: Target, operator: str, args: tuple) -> None:
    if objections := BACKENDS[target.backend].objections(operator, target.device, args):
        pytest.skip(f"{target.id}: {'; '.join(objections)}")


def targets() -> list[Target]:
    """Every backend on every kind of device that it is preferred for; on the CPU also what is emulated there."""
    found = [Target(name, device) for device, names in backends.PREFERENCE.items() for name in names]
    emulated = {"triton": triton._interpreting(), "cuda": native.emulated()}
    return [*found, *(Target(name, "cpu") for name, here in emulated.items() if here)]


def able(operator: str) -> list:
    """Parameters: the targets that serve this operator here. Those that do not are named by test_parity.py."""
    return [pytest.param(t, id=t.id, marks=t.marks) for t in targets() if not t.reasons(operator)]


def on_every_target(operator: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("target", able(operator))


def served(cases: Iterable[Case], suffix: str = "") -> list:
    """Parameters ``(target, case)``; of those that a target cannot serve one for each of its reasons, skipped with it.

    Args:
        suffix: ``"_backward"`` if it is the backward operators that matter.
    """
    parameters = []
    for target in targets():
        told = set()
        for case in cases:
            operator = case.operator + suffix
            reason = "; ".join(target.reasons(operator))
            if not reason:
                slow = [pytest.mark.slow] if target.id == "triton-cpu" and not interpreted(case, suffix) else []
                marks = [*target.marks, *slow]
                parameters.append(pytest.param(target, case, id=f"{target.id}-{case.id}", marks=marks))
            elif reason not in told:
                told.add(reason)
                marks = [*target.marks, pytest.mark.skip(reason=f"{target.id}: {reason}")]
                parameters.append(pytest.param(target, None, id=f"{target.id}-{operator}", marks=marks))
    return parameters


def served_in(dtypes: Iterable[torch.dtype], cases: Iterable[Case], suffix: str = "") -> list:
    """Parameters ``(target, case, dtype)``, but for the reference in float64, which would be compared with itself."""
    parameters = []
    for parameter in served(cases, suffix):
        target, case = parameter.values
        for dtype in dtypes if case else [None]:
            if (target.id, dtype) != ("reference-cpu", torch.float64):
                name = f"{parameter.id}-{str(dtype)[6:]}" if dtype else parameter.id
                parameters.append(pytest.param(target, case, dtype, id=name, marks=parameter.marks))
    return parameters
