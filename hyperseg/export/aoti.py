"""AOTInductor packages: a network compiled into one file, from uint8 frames to labels, for programs without Python.

The network is the engine's: folded, its parts fused, and every operator bound to the C++ or CUDA implementation that
``auto`` takes on the device. What remains for the compiler is a list of calls, so a package gives the engine's labels,
bit by bit. ``csrc/runtime`` loads packages in C++, ``hyperseg.runtime_cpp`` in Python.
"""

import contextlib
import ctypes
import functools
import logging
import operator
import os
import platform
import re
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch.export import ExportedProgram

from hyperseg._text import brief
from hyperseg.export.common import (
    Check,
    Exported,
    ExportError,
    Options,
    Reference,
    check_target,
    device_of,
    network_of,
    require_agreement,
    without_warnings_logged,
)
from hyperseg.export.network import Labels
from hyperseg.export.sidecar import describe_program, finish
from hyperseg.ops import OPERATORS
from hyperseg.ops.backends.dispatch import decide
from hyperseg.ops.backends.native import emulated, extension
from hyperseg.runtime.engine import Engine, build_engine
from hyperseg.runtime.errors import EngineError
from hyperseg.runtime.precision import in_own_dtype

logger = logging.getLogger("hyperseg.export")

SUFFIX = ".pt2"  # AOTInductor writes no other
FORMAT = "1"  # of the metadata, which csrc/runtime/segmenter.cpp reads
PORTABLE = "x86-64-v3"  # what the compiled code may use of an x86 CPU; the operators choose more at run time


def export_aoti(
    model: nn.Module,
    file: str | os.PathLike[str],
    size: tuple[int, int] | None = None,
    *,
    batch: int | None = None,
    returns: str = "labels",
    precision: str = "float32",
    device: str | torch.device = "cpu",
    check: bool = True,
    overwrite: bool = False,
    source: str | None = None,
) -> Exported:
    """Compile a network into a package for :class:`hyperseg::Segmenter` in C++; takes about a minute.

    Args:
        model: any network, also wrapped as for :func:`hyperseg.build_engine`; it is copied.
        file: its name ends in ``.pt2``.
        size: (H, W) of the frames; default: the network's published resolution.
        batch: frames per call, fixed; default: 1.
        returns: ``"labels"``: packages return nothing else.
        precision: ``"float32"``, ``"float16"`` or ``"bfloat16"``; see :func:`hyperseg.build_engine`.
        device: ``"cpu"`` or a CUDA device: the package runs on the same kind of device, a GPU of the same architecture.
        check: compare the package, run by PyTorch, with the network before it is written.
        overwrite: replace existing files.
        source: where the weights come from, for the sidecar.

    Raises:
        ExportError: there is no C++ compiler or no extension here, the package does not match the network, or a file
            cannot be written; nothing is written then.
        TypeError, ValueError: as in :func:`hyperseg.build_engine`.
    """
    network = network_of(model)
    if returns != "labels":
        raise ValueError(f"a package returns labels, not {returns}; ONNX files and pt2 programs can return logits.")
    if Path(file).suffix != SUFFIX:
        raise ValueError(f"the name of a package must end in {SUFFIX}, got {Path(file).name}.")
    where = device_of(device)
    options = Options.of(
        "aoti",
        network,
        size,
        1 if batch is None else batch,
        returns=returns,
        precision=precision,
        device=where.type,
        check=check,
        overwrite=overwrite,
        source=source,
    )
    check_target(file, overwrite)
    _check_tools()
    try:
        engine = build_engine(
            network, options.size, getattr(torch, precision), where, options.batches[0], check=options.check
        )
    except EngineError as error:
        raise ExportError(str(error)) from None

    about = describe_program("aoti", network, options, capability=_capability(where))

    def write(path: Path) -> tuple[Sequence[Check], Sequence[str]]:
        _compile(engine, about, path)
        return (
            _compare(engine, load_aoti(path), Reference(network, options))
            if check
            else ((), ("not checked, as asked",))
        )

    return finish(file, options, about, write)


def load_aoti(file: str | os.PathLike[str]) -> Callable[[Tensor], Tensor]:
    """Load a package into this process by PyTorch: a function from uint8 frames ``[N, H, W, 3]`` to labels.

    ``hyperseg.runtime_cpp.Segmenter`` does the same for NumPy arrays, without importing PyTorch.
    """
    extension()
    _share_torch()
    with without_warnings_logged():  # it warns that the package does not use all that this CPU has
        package = torch._inductor.aoti_load_package(str(Path(file).resolve()))

    def run(frames: Tensor) -> Tensor:
        with torch.inference_mode():
            labels: Tensor = package(frames)
        return labels

    return run


@functools.cache
def _share_torch() -> None:
    """Let packages for the CPU find PyTorch's symbols: they name no library, and Python keeps extensions apart."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL("libtorch_cpu.so", os.RTLD_NOLOAD | os.RTLD_GLOBAL | os.RTLD_LAZY)


def _check_tools() -> None:
    """Raise ExportError if packages cannot be made here."""
    module, problem = extension()
    if module is None or emulated():
        problem = problem or "this build of the extension has CUDA kernels for the CPU, for tests"
        raise ExportError(f"a package calls operators in C++, but {problem}")
    compilers = [os.environ.get("CXX", "g++"), "g++", "clang++"]
    if not any(map(shutil.which, compilers)):
        raise ExportError("a package is compiled, but there is no C++ compiler here; install g++, or set CXX to one")


def _compile(engine: Engine, about: Mapping[str, Any], path: Path) -> None:
    logger.info("compiling %s, which takes about a minute", engine.config.name)
    frames = torch.zeros(engine.batch, *engine.size, 3, dtype=torch.uint8, device=engine.device)
    try:
        with torch.no_grad(), without_warnings_logged():
            trace = in_own_dtype(_trace(engine), engine.device, engine.dtype)
            compile_package(bind(trace(frames)), engine, metadata(about), path)
        _require_known_in_cpp(path)
    except (ExportError, OSError):
        raise
    except Exception as error:  # a compiler's errors have no common base
        raise ExportError(
            f"{engine.config.name} ({engine.config.encoder}) at {engine.size[0]}x{engine.size[1]} cannot be compiled "
            f"by AOTInductor ({brief(error)})"
        ) from error


def compile_package(program: ExportedProgram, engine: Engine, about: Mapping[str, str], path: Path) -> None:
    """Compile a program as for an engine into a package with the metadata ``about``; nothing is checked."""
    settings = {"aot_inductor.metadata": dict(about), **_compiler_settings(engine)}
    with _numbers_as_read():
        torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=settings)


def _trace(engine: Engine) -> Callable[[Tensor], ExportedProgram]:
    return lambda frames: torch.export.export(Labels(engine.folded), (frames,))


def _compare(
    engine: Engine, package: Callable[[Tensor], Tensor], reference: Reference
) -> tuple[Sequence[Check], Sequence[str]]:
    """Compare a package with the module, and with the engine that it was made from, whose logits stand for its own."""
    frames = reference.frames.to(engine.device)  # one batch
    labels, logits = package(frames), engine.logits(frames)
    checks = reference.compare(
        f"AOTInductor of torch {torch.__version__} ({engine.device})",
        lambda _: labels.cpu().numpy(),
        lambda _: logits.cpu().numpy(),
    )
    require_agreement(checks, reference.options.precision)
    differ, count = int((labels != engine(frames)).sum()), labels.numel()
    equal = (
        f"{differ} of {count} labels differ from the engine's" if differ else f"all {count} labels equal the engine's"
    )
    return checks, (equal,)


def metadata(about: Mapping[str, Any]) -> dict[str, str]:
    """Return what a package says about itself, by name; the C++ runtime reads it before it loads anything.

    Args:
        about: the contents of the sidecar.
    """
    height, width = about["size"]
    found = {
        "format": FORMAT,
        "version": about["versions"]["hyperseg"],
        "torch": about["versions"]["torch"],
        "network": about["network"]["name"],
        "height": height,
        "width": width,
        "batch": about["batch"],
        "classes": "\n".join(about["classes"]),
        "palette": ";".join(",".join(map(str, color)) for color in about["palette"]),
        "device": about["device"],
        "dtype": about["precision"],
        "capability": about["capability"],
    }
    return {f"hyperseg.{name}": str(value) for name, value in found.items()}


def bind(program: ExportedProgram) -> ExportedProgram:
    """Replace each call of an operator of HyperSeg by the C++ or CUDA operators that run it on its device.

    A call that these do not support becomes plain PyTorch.

    Raises:
        ExportError: a call would run in Triton, which needs Python.
    """
    overloads = {n.target for n in program.graph.nodes if getattr(n.target, "namespace", "") == "hyperseg"}
    names = {overload: overload._opname for overload in overloads}
    for name in OPERATORS:
        _register_fake(name)
    return program.run_decompositions({overload: functools.partial(_run, name) for overload, name in names.items()})


def _run(name: str, *args: Any) -> Any:
    """Run an operator by the backend that an engine takes for these arguments: in C++ or CUDA, or its reference."""
    backend, function, _ = decide(name, args)
    if backend == "triton":
        raise ExportError(
            f"{name} would run in Triton here, which needs Python; build the CUDA kernels (python setup.py "
            "build_ext, with nvcc)."
        )
    if backend == "reference":
        logger.info("%s has no C++ or CUDA implementation for a call: it becomes plain PyTorch", name)
    return function(*args)


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


class KnownInCpp(CustomGraphPass):
    """Replaces operators that the compiler writes, but that only Python knows, by those of ATen.

    It also removes products of integers with 1 and sums with 0, which the compiler writes for torch.arange: packages of
    torch 2.11 cannot add integers (https://github.com/pytorch/pytorch/pull/194262).
    """

    def __call__(self, graph: torch.fx.Graph) -> None:
        for node in graph.find_nodes(op="call_function", target=torch.ops.prims.convert_element_type.default):
            x, dtype = node.args
            node.target, node.args, node.kwargs = torch.ops.aten._to_copy.default, (x,), {"dtype": dtype}
        for node in graph.find_nodes(op="call_function", target=torch.ops.prims.iota.default):
            (length,), of = node.args, node.kwargs
            start, step = of["start"], of["step"]
            node.target, node.args = torch.ops.aten.arange.start_step, (start, start + length * step, step)
            node.kwargs = {"dtype": of["dtype"], "device": of["device"]}
        for target, neutral in ((torch.ops.aten.mul.Tensor, 1), (torch.ops.aten.add.Tensor, 0)):
            for node in graph.find_nodes(op="call_function", target=target):
                x, value = node.args
                if value == neutral and node.meta["val"].dtype == x.meta["val"].dtype == torch.int64:
                    node.replace_all_uses_with(x)
                    graph.erase_node(node)

    def uuid(self) -> str:
        return "hyperseg.export.aoti.KnownInCpp 2"


def _require_known_in_cpp(package: Path) -> None:
    """Raise ExportError if a package calls an operator that only Python has: a check in Python does not notice."""
    with zipfile.ZipFile(package) as archive:
        listed = [archive.read(name).decode() for name in archive.namelist() if name.endswith(".json")]
    called = {name for text in listed for name in re.findall(r'"(\w+::[\w.]+)"', text)}
    if unknown := sorted(name for name in called if name.split("::")[0] not in ("aten", "hyperseg_native")):
        raise ExportError(
            f"this network calls {', '.join(unknown)}, which programs without Python do not have; export onnx or pt2"
        )


def _compiler_settings(engine: Engine) -> dict[str, Any]:
    """Return settings of Inductor: PyTorch's own kernels for what is no call, and no more of the CPU than necessary."""
    settings: dict[str, Any] = {
        "fallback_by_default": True,  # generated kernels round differently
        "aot_inductor.compile_wrapper_opt_level": "O0",  # a list of calls, with nothing to optimise
        "post_grad_custom_post_pass": KnownInCpp(),
    }
    if engine.device.type == "cpu" and _is_portable():
        settings |= {"cpp.march": PORTABLE, "cpp.simdlen": 256}
    if engine.device.type == "cpu":
        # libtorch.so would bring the CUDA libraries, which take most of a second to load. See _share_torch.
        settings["aot_inductor.link_libtorch"] = False
    return {name: value for name, value in settings.items() if _has_setting(name)}


# The numbers of c10::ScalarType, c10::MemoryFormat and c10::Layout, of what a network can have.
_OF_C10: dict[str, dict[Any, int]] = {
    "DTYPE": {
        torch.uint8: 0,
        torch.int8: 1,
        torch.int16: 2,
        torch.int32: 3,
        torch.int64: 4,
        torch.float16: 5,
        torch.float32: 6,
        torch.float64: 7,
        torch.bool: 11,
        torch.bfloat16: 15,
    },
    "MEMORY_FORMAT": {torch.contiguous_format: 0, torch.preserve_format: 1, torch.channels_last: 2},
    "LAYOUT": {torch.strided: 0},
}


@contextlib.contextmanager
def _numbers_as_read() -> Iterator[None]:
    """Write dtypes, memory formats and layouts into a package by the numbers that this version's loader reads.

    That of torch before 2.12 takes the numbers of packages for those of c10: int64 becomes float16.
    See https://github.com/pytorch/pytorch/issues/169157.
    """
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 12):
        yield
        return
    from torch._export.serde import serialize

    with contextlib.ExitStack() as restored:
        for name, numbers in _OF_C10.items():
            table = getattr(serialize, f"_TORCH_TO_SERIALIZE_{name}")
            restored.callback(table.update, dict(table))
            table.update(numbers)
        yield


def _has_setting(name: str) -> bool:
    """Whether this version of PyTorch has a setting of Inductor."""
    try:
        operator.attrgetter(name)(torch._inductor.config)
    except AttributeError:
        return False
    return True
