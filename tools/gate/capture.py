"""Compile the kernels that launchers launch, for a GPU that need not be present: driver and launch are replaced."""

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import NamedTuple
from unittest import mock

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime.jit import JITFunction

from hyperseg.kernels import launch

ARCHITECTURES = (80, 90, 100)
SHARED = {80: 166_912, 90: 232_448, 100: 232_448}  # most bytes of shared memory per block


class Launch(NamedTuple):
    """A kernel compiled for a launch, and the table key that its launcher looked up before."""

    kernel: CompiledKernel
    line: str


class StandIn:
    """The driver of a GPU of this compute capability, as far as compiling needs one."""

    def __init__(self, arch: int):
        self.arch = arch
        self.utils = SimpleNamespace(get_device_properties=lambda device: {"max_shared_mem": SHARED[arch]})

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        """Triton caches compiled kernels by device: each architecture is one, with the number of no real device."""
        return self.arch

    def get_current_stream(self, device: int) -> int:
        return 0


@contextlib.contextmanager
def compiling(arch: int) -> Iterator[list[Launch]]:
    """Inside, a launch on CPU tensors compiles its kernel for ``arch``, adds it to the list and runs nothing.

    Types, constants, specialisation on divisibility and options are those of the launch: CPU tensors are aligned like
    GPU tensors.
    """
    run, found = JITFunction.run, []

    def compile_only(self, *args, grid, warmup, **options):
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        found.append(Launch(kernel, next(reversed(lookups), "")))
        return kernel

    config = triton.runtime.driver
    before = config._active
    config.set_active(StandIn(arch))
    try:
        with (
            mock.patch.object(JITFunction, "run", compile_only),
            mock.patch.object(launch, "architecture", return_value=arch),
            launch.lookups() as lookups,
        ):
            yield found
    finally:
        config._active = before
