"""Test targets: every backend in the registry on every kind of device, as parameters of tests."""

import functools
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import pytest
import torch

from hyperseg.ops import BACKENDS, use_backend
from hyperseg.ops.backends import dispatch, native, triton
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
        """Return the reasons why this target runs no call of this operator, or []."""
        if self.device == "cuda" and not torch.cuda.is_available():
            return ["this machine has no CUDA device that PyTorch can use"]
        return BACKENDS[self.backend].lacks(operator)

    def run(self, operator: str, args: tuple):
        """Return the operator's output from this backend. Skip the test if it does not support these arguments."""
        skip_if_not_supported(self, operator, args)
        with use_backend(self.backend):
            return getattr(torch.ops.hyperseg, operator).default(*args)


def skip_if_not_supported(target: Target, operator: str, args: tuple) -> None:
    if reasons := BACKENDS[target.backend].not_supported_reasons(operator, args):
        pytest.skip(f"{target.id}: {'; '.join(reasons)}")


def targets() -> list[Target]:
    """Return every backend on every kind of device in its preference list, and the emulated backends on the CPU."""
    found = [Target(name, device) for device, names in dispatch.PREFERENCE.items() for name in names]
    emulated = {"triton": triton.interpreting(), "cuda": native.emulated()}
    return [*found, *(Target(name, "cpu") for name, here in emulated.items() if here)]


def able(operator: str) -> list:
    """Return the targets that support this operator here. test_parity.py skips the others and names their reasons."""
    return [pytest.param(t, id=t.id, marks=t.marks) for t in targets() if not t.reasons(operator)]


def on_every_target(operator: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("target", able(operator))


def supported(cases: Iterable[Case], suffix: str = "") -> list:
    """Return parameters ``(target, case)``, and one skipped parameter per reason why a target does not support cases.

    Args:
        suffix: ``"_backward"`` to test the backward operators.
    """
    parameters = []
    for target in targets():
        listed = set()
        for case in cases:
            operator = case.operator + suffix
            reason = "; ".join(target.reasons(operator))
            if not reason:
                slow = [pytest.mark.slow] if target.id == "triton-cpu" and not interpreted(case, suffix) else []
                marks = [*target.marks, *slow]
                parameters.append(pytest.param(target, case, id=f"{target.id}-{case.id}", marks=marks))
            elif reason not in listed:
                listed.add(reason)
                marks = [*target.marks, pytest.mark.skip(reason=f"{target.id}: {reason}")]
                parameters.append(pytest.param(target, None, id=f"{target.id}-{operator}", marks=marks))
    return parameters


def supported_in(dtypes: Iterable[torch.dtype], cases: Iterable[Case], suffix: str = "") -> list:
    """Return parameters ``(target, case, dtype)``, without the reference in float64, which is the expected output."""
    parameters = []
    for parameter in supported(cases, suffix):
        target, case = parameter.values
        for dtype in dtypes if case else [None]:
            if (target.id, dtype) != ("reference-cpu", torch.float64):
                name = f"{parameter.id}-{str(dtype)[6:]}" if dtype else parameter.id
                second = dtype == second_dtype(target.id, parameter.id)
                marks = [*parameter.marks, *([pytest.mark.second_dtype] if second else [])]
                parameters.append(pytest.param(target, case, dtype, id=name, marks=marks))
    return parameters


def second_dtype(target: str, name: str) -> torch.dtype | None:
    """Return the dtype, of those of a slow emulation, in which `make test` does not run this case; None: there is none.

    In the shim a kernel of 16-bit floats is one template for both.
    """
    choices = {"triton-cpu": (torch.float16, torch.float32), "cuda-cpu": (torch.float16, torch.bfloat16)}.get(target)
    return choices and choices[zlib.crc32(name.encode()) % 2]
