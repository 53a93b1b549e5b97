"""AOTInductor packages: a network compiled into one file, from uint8 frames to labels, for programs without Python.

The network is the engine's: folded, its parts fused, and every operator bound to the C++ or CUDA implementation that
``auto`` takes on the device. What remains for the compiler is a list of calls, so a package gives the engine's labels,
bit by bit. ``csrc/runtime`` loads packages in C++, ``hyperseg.runtime_cpp`` in Python.
"""

import contextlib
import functools
import logging
import operator
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

import hyperseg
from hyperseg._files import atomic_write
from hyperseg.data.labels import LabelSet
from hyperseg.ops import OPERATORS
from hyperseg.ops.backends.backend import device_type
from hyperseg.ops.backends.dispatch import BACKENDS, order
from hyperseg.ops.backends.native import emulated, extension
from hyperseg.ops.backends.verdicts import PASSED_OVER
from hyperseg.runtime.engine import Engine
from hyperseg.runtime.folding import FoldedNetwork
from hyperseg.runtime.precision import in_own_dtype

logger = logging.getLogger("hyperseg.export")

FORMAT = "1"  # of the metadata, which csrc/runtime/segmenter.cpp reads
PORTABLE = "x86-64-v3"  # what the compiled code may use of an x86 CPU; the operators choose more at run time


class PackageError(RuntimeError):
    """The network cannot become a package here."""


class _Frames(nn.Module):
    def __init__(self, folded: FoldedNetwork) -> None:
        super().__init__()
        self.folded = folded

    def forward(self, frames: Tensor) -> Tensor:
        return self.folded.from_frames(frames)


def write_package(engine: Engine, labels: LabelSet, file: str | os.PathLike[str]) -> None:
    """Compile an engine's network and write the package; takes about a minute.

    Args:
        engine: in mode ``"eager"``, on the CPU or on a CUDA device. The package takes its frame size, batch and dtype.
        labels: names and colours of the classes, for those who read the package.
        file: ends in ``.pt2``. It is replaced all at once.

    Raises:
        PackageError: there is no C++ compiler, or an operator has no C++ or CUDA implementation here.
        OSError: the file cannot be written.
    """
    module, problem = extension()
    if module is None or emulated():
        raise PackageError(
            f"A package calls operators in C++, and {problem or 'this build has CUDA kernels for the CPU only'}."
        )
    program = bind(_exported(engine))
    configuration = {"aot_inductor.metadata": metadata(engine, labels), **_compiler_settings(engine)}
    with atomic_write(file) as temporary, _quiet_compiler():
        # Inductor names things after the file: the same network gives the same package under any name.
        torch._inductor.aoti_compile_and_package(program, package_path=str(temporary), inductor_configs=configuration)


def metadata(engine: Engine, labels: LabelSet) -> dict[str, str]:
    """Return what a package says about itself, by name; the C++ runtime reads it before it loads anything."""
    height, width = engine.size
    found = {
        "format": FORMAT,
        "version": hyperseg.__version__,
        "torch": str(torch.__version__),
        "network": engine.config.name,
        "height": height,
        "width": width,
        "batch": engine.batch,
        "classes": "\n".join(labels.classes),
        "palette": ";".join(",".join(map(str, color)) for color in labels.colors),
        "device": engine.device.type,
        "dtype": str(engine.dtype).removeprefix("torch."),
        "capability": _capability(engine.device),
    }
    return {f"hyperseg.{name}": str(value) for name, value in found.items()}


def _exported(engine: Engine) -> ExportedProgram:
    frames = torch.zeros(engine.batch, *engine.size, 3, dtype=torch.uint8, device=engine.device)
    with torch.no_grad():
        export = in_own_dtype(lambda x: torch.export.export(_Frames(engine.folded), (x,)), engine.device, engine.dtype)
        return export(frames)


def bind(program: ExportedProgram) -> ExportedProgram:
    """Replace each call of an operator of HyperSeg by the C++ or CUDA operators that run it on its device.

    A call that these do not support becomes plain PyTorch.

    Raises:
        PackageError: a call would run in Triton, which needs Python.
    """
    overloads = {n.target for n in program.graph.nodes if getattr(n.target, "namespace", "") == "hyperseg"}
    names = {overload: overload._opname for overload in overloads}
    for name in OPERATORS:
        _register_fake(name)
    return program.run_decompositions({overload: functools.partial(_run, name) for overload, name in names.items()})


def _run(name: str, *args: Any) -> Any:
    """Run an operator by the C++ or CUDA backend that ``auto`` takes for these arguments, else by its reference."""
    device = device_type(args)
    for candidate in order(name, device):
        backend = BACKENDS[candidate]
        if (name, candidate) in PASSED_OVER[device] or backend.not_supported_reasons(name, args):
            continue
        if candidate == "triton":
            raise PackageError(
                f"{name} would run in Triton here, which needs Python; build the CUDA kernels (python setup.py "
                "build_ext, with nvcc)."
            )
        if candidate == "reference":
            logger.info("%s has no C++ or CUDA implementation for a call: it becomes plain PyTorch", name)
        return backend.supported[name](*args)
    raise AssertionError(f"no backend runs {name} on {device}")


@functools.cache
def _register_fake(name: str) -> None:
    """Tell the compiler the outputs' shapes and strides of a native operator: those of the operator of this name."""
    if not hasattr(torch.ops.hyperseg_native, name):
        return  # a backend composes it of others
    torch.library.register_fake(f"hyperseg_native::{name}", getattr(torch.ops.hyperseg, name).default, lib=_library())


@functools.cache
def _library() -> torch.library.Library:
    return torch.library.Library("hyperseg_native", "FRAGMENT")


def _capability(device: torch.device) -> str:
    """Return what a device must have to run a package that is made for this one; "" if nothing is known."""
    if device.type == "cuda":
        return "sm_{}{}".format(*torch.cuda.get_device_capability(device))
    return PORTABLE if _is_portable() else ""


def _is_portable() -> bool:
    """Whether code for :data:`PORTABLE` can be compiled and run here."""
    return platform.machine() in ("x86_64", "AMD64") and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def _compiler_settings(engine: Engine) -> dict[str, Any]:
    """Return settings of Inductor: PyTorch's own kernels for what is no call, and no more of the CPU than necessary."""
    settings: dict[str, Any] = {
        "fallback_by_default": True,  # generated kernels round differently
        "aot_inductor.compile_wrapper_opt_level": "O0",  # a list of calls, with nothing to optimise
    }
    if engine.device.type == "cpu" and _is_portable():
        settings |= {"cpp.march": PORTABLE, "cpp.simdlen": 256}
    return {name: value for name, value in settings.items() if _has_setting(name)}


def _has_setting(name: str) -> bool:
    """Whether this version of PyTorch has a setting of Inductor."""
    try:
        operator.attrgetter(name)(torch._inductor.config)
    except AttributeError:
        return False
    return True


@contextlib.contextmanager
def _quiet_compiler() -> Iterator[None]:
    """Silence warnings of the compiler about machines that this package is not for."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(disabled)


def load_package(file: str | os.PathLike[str]) -> Any:
    """Load a package into this process with PyTorch, to check it; returns a function from frames to labels."""
    extension()
    return torch._inductor.aoti_load_package(str(Path(file).resolve()))
