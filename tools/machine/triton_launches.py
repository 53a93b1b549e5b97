"""Launches of the Triton kernels, compiled for a GPU that need not be present, with parameters as CUDA gets them.

    with recording() as launches, use_backend("triton"):
        ops.stem(...)  # on CPU tensors
    counts = library().count(launches[0])

Nothing is executed: as in tools/gate/capture.py a launch only compiles. :class:`Library` has the methods of
:class:`tools.machine.library.Library`.
"""

from __future__ import annotations

import contextlib
import functools
import struct
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from torch import Tensor
from triton.compiler import CompiledKernel
from triton.runtime.jit import JITFunction

from hyperseg.ops.backends import triton as backend
from tools.gate.binary import usage
from tools.gate.capture import compiling
from tools.machine.counting import SAMPLE, Counts, count, pointers
from tools.machine.recording import Launch
from tools.machine.sass import disassemble

_FORMATS = {"i1": "?", "i8": "b", "i16": "h", "i32": "i", "i64": "q", "u8": "B", "u16": "H", "u32": "I", "u64": "Q"}
_FORMATS |= {"fp32": "f", "fp64": "d"}
_SCRATCH = b"\0" * 8  # pointers to scratch memory, which no kernel of ours has


@dataclass(frozen=True)
class TritonLaunch(Launch):
    """One launch; ``kernel`` is the name in the sources and the hash of what was compiled."""

    compiled: CompiledKernel = field(repr=False, compare=False)


@dataclass(frozen=True)
class Resources:
    """What a kernel takes of an SM. Its shared memory is dynamic, but for what sm_90 reserves."""

    registers: int  # per thread
    shared_bytes: int


@contextlib.contextmanager
def recording(arch: int = 90) -> Iterator[list[TritonLaunch]]:
    """Inside, the backend takes CPU tensors; its launches are compiled for ``arch`` and added to the list."""
    found: list[TritonLaunch] = []
    taken = mock.patch.multiple(backend, interpreting=lambda: True, any_of_dtype=lambda dtype, args: False)
    with taken, compiling(arch):
        compile_only = JITFunction.run

        def run(self: JITFunction, *args: Any, grid: Any, **options: Any) -> CompiledKernel:
            kernel = compile_only(self, *args, grid=grid, **options)
            named = dict(zip([p.name for p in self.params], args, strict=False)) | options
            shape = grid(named) if callable(grid) else grid
            x, y, z = (*shape, 1, 1)[:3]
            found.append(
                TritonLaunch(
                    "",
                    f"{kernel.metadata.name}<{kernel.hash[:12]}>",
                    (x, y, z),
                    32 * kernel.metadata.num_warps,
                    kernel.metadata.shared,
                    parameters(kernel, [named[p.name] for p in self.params]),
                    kernel,
                )
            )
            return kernel

        with mock.patch.object(JITFunction, "run", run):
            yield found


def parameters(kernel: CompiledKernel, arguments: Sequence[Any]) -> bytes:
    """Return the parameter buffer of a launch: arguments that are no constants, each at its own alignment."""
    buffer = b""
    for kind, value in _flat(list(kernel.src.signature.values()), arguments):
        if kind.startswith("*"):
            item = struct.pack("q", value.data_ptr() if isinstance(value, Tensor) else int(value))
        else:
            item = struct.pack(_FORMATS[kind], value)
        buffer = _append(buffer, item)
    return _append(_append(buffer, _SCRATCH), _SCRATCH)


def _append(buffer: bytes, item: bytes) -> bytes:
    return buffer + b"\0" * (-len(buffer) % len(item)) + item


def _flat(kinds: Sequence[Any], values: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    for kind, value in zip(kinds, values, strict=True):
        if isinstance(kind, tuple | list):
            yield from _flat(kind, value)
        elif kind != "constexpr":
            yield kind, value


class Library:
    """The machine code of recorded launches, and what they execute."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self._counts: dict[tuple, Counts] = {}

    def preload(self, launches: Sequence[Launch]) -> None:
        """Nothing to do: each launch has its own cubin."""

    def resources(self, launch: TritonLaunch) -> Resources:
        """Return what the launched kernel takes, beside its dynamic shared memory."""
        found = usage(launch.compiled)
        return Resources(found.registers, found.shared - launch.shared_bytes)

    def text(self, launch: TritonLaunch) -> str:
        """Return the machine code of the launched kernel."""
        if launch.kernel not in self._texts:
            with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
                file.write(launch.compiled.asm["cubin"])
                file.flush()
                (self._texts[launch.kernel],) = disassemble(file.name, launch.compiled.metadata.name).values()
        return self._texts[launch.kernel]

    def count(self, launch: TritonLaunch, most_blocks: int = SAMPLE) -> Counts:
        """Return what a launch executes. Launches that differ only in addresses are counted once."""
        key = (launch.kernel, launch.grid, _anonymous(launch.parameters), most_blocks)
        if key not in self._counts:
            self._counts[key] = count(
                self.text(launch), launch.grid, launch.threads, launch.shared_bytes, launch.parameters,
                most_blocks=most_blocks,
            )  # fmt: skip
        return self._counts[key]


def _anonymous(raw: bytes) -> bytes:
    """Replace addresses by their order: a kernel's flow does not depend on them."""
    result = bytearray(raw)
    known = {int(address): n for n, address in enumerate(pointers(raw))}
    for n in range(0, len(raw) // 8 * 8, 8):
        word = int.from_bytes(raw[n : n + 8], "little")
        if word in known:
            result[n : n + 8] = (known[word] << 16 | word % 16).to_bytes(8, "little")
    return bytes(result)


@functools.cache
def library() -> Library:
    """Return the library of this process."""
    return Library()
