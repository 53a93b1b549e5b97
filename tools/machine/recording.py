"""Launches recorded in the shim build of the CUDA kernels, and the machine code that belongs to each."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from hyperseg.ops.backends import native

# Blocks of a cooperative launch on an H100: 132 SMs, two blocks each, by the launch bounds of mbconv_chain_kernel.
TOGETHER = 264
_TOGETHER = "HYPERSEG_SHIM_BLOCKS"  # read by csrc/shim/launch.h


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel, with its parameters as CUDA passes them."""

    operator: str
    kernel: str  # demangled, as names() writes it
    grid: tuple[int, int, int]
    threads: int
    shared_bytes: int
    parameters: bytes

    @property
    def name(self) -> str:
        """The kernel's name in the sources."""
        found = re.search(r"(\w+_kernel)\b", self.kernel)
        return found[1] if found else self.kernel


def _module() -> Any:
    return native.extension()[0]


def unavailable() -> str | None:
    """Return why no launches can be recorded, or None."""
    module, message = native.extension()
    if module is None:
        return message
    if not native.emulated() or not hasattr(module, "recorded"):
        return (
            "launches are recorded in the shim build: run `make shim`, then set "
            "HYPERSEG_EXTENSION=build/shim/hyperseg/_C.abi3.so"
        )
    return None


@contextlib.contextmanager
def recording(run: bool = False) -> Iterator[list[Launch]]:
    """Record the launches in this block; the list is filled as they are asked for by :func:`take`, and at the end.

    Args:
        run: also run the kernels; without it their outputs have no values, and a frame takes a second.
    """
    if message := unavailable():
        raise RuntimeError(message)
    module = _module()
    found: list[Launch] = []
    before = os.environ.get(_TOGETHER)
    if not run:
        os.environ[_TOGETHER] = str(TOGETHER)
    module.record(2 if run else 1)
    try:
        yield found
    finally:
        take(found)
        module.record(0)
        if before is not None:
            os.environ[_TOGETHER] = before
        elif not run:
            del os.environ[_TOGETHER]


def take(found: list[Launch]) -> None:
    """Append what was recorded since the last call."""
    recorded = _module().recorded()
    found += [Launch(op, plain(name), grid, *rest) for op, name, grid, *rest in recorded[len(found) :]]


def plain(mangled: str) -> str:
    """Demangle a kernel's name or the type that names it, and write both alike: no hashes, no namespaces of types."""
    text = torch._C._demangle(mangled)
    text = re.sub(r"_GLOBAL__N__\w+", "(anonymous namespace)", text)
    if match := re.search(r"hyperseg::shim::Kernel<&?\(?(.*?)\)?>$", text):
        text = match[1]
    text = text.replace("hyperseg::cuda::half", "__half").replace("hyperseg::cuda::bfloat16", "__nv_bfloat16")
    text = text.replace("(anonymous namespace)::", "").replace("hyperseg::cuda::", "").replace("hyperseg::", "")
    text = text.removeprefix("void ")
    return _without_parameters(text)


def _without_parameters(text: str) -> str:
    """Cut a demangled function at the parenthesis that begins its parameters: template arguments identify it."""
    depth = 0
    for n, c in enumerate(text):
        depth += (c == "<") - (c == ">")
        if c == "(" and not depth:
            return text[:n]
    return text
