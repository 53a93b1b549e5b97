"""The extension ``hyperseg._C``: loading it, and its operators ``torch.ops.hyperseg_native.*`` for cpp and cuda."""

import contextlib
import functools
import importlib
import importlib.machinery
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch

# Those of :func:`cpu_capability` that multiply bfloat16 faster than float32.
BFLOAT16_CAPABILITIES = ("avx512_bf16", "amx")


@functools.cache
def extension() -> tuple[ModuleType | None, str | None]:
    """Return ``(module, None)``, or ``(None, message)`` if it was not built or does not load.

    HYPERSEG_EXTENSION names the file of another build, such as one with sanitizers.
    """
    other = os.environ.get("HYPERSEG_EXTENSION")
    if other and not os.path.isfile(other):
        return None, f"HYPERSEG_EXTENSION names {other}, which does not exist; name a build of hyperseg._C, or unset it"
    try:
        return _load(other) if other else importlib.import_module("hyperseg._C"), None
    except ModuleNotFoundError:
        if sys.platform != "linux":
            return None, f"the extension hyperseg._C is for Linux, and this is {sys.platform}"
        return None, "the extension hyperseg._C was not built; run `python setup.py build_ext`"
    except ImportError as error:
        advice = "rebuild it with `python setup.py build_ext`"
        if re.search(r"lib(torch_cuda|c10_cuda|cudart)\b", str(error)):  # the CUDA wheel beside another torch
            advice = "it is a build with CUDA, for a PyTorch with the same major version of CUDA: install that, " + (
                "or the wheel for the CPU"
            )
        return None, f"the extension hyperseg._C does not load ({error}); {advice}"


def _load(path: str) -> ModuleType:
    loader = importlib.machinery.ExtensionFileLoader("hyperseg._C", path)
    spec = importlib.util.spec_from_file_location("hyperseg._C", path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    sys.modules["hyperseg._C"] = module
    return module


def emulated() -> bool:
    """Whether this build runs its CUDA kernels on the CPU, for tests: see csrc/shim/README.md."""
    module = extension()[0]
    return module is not None and module.cuda_architectures == "shim"


def cpu_capability() -> str:
    """The instruction set of the C++ operators, or why there is none.

    ``default``, ``avx2``, ``avx512``, or AVX-512 and products of bfloat16: ``avx512_bf16`` or ``amx``.
    """
    module = extension()[0]
    if module is None or emulated():
        return "none: there are no C++ operators for the CPU"
    if not hasattr(module, "cpu_capability"):
        return "unknown: the extension hyperseg._C is older than this; run `python setup.py build_ext`"
    try:
        return module.cpu_capability()
    except ValueError as error:
        return f"none: {error}"


@contextlib.contextmanager
def constants_ready() -> Iterator[None]:
    """Promise, for this thread's calls inside, that the parameters of operators were complete before the first of them.

    CUDA kernels then read weights, biases, generators and scales before the previous kernel of the stream has finished.
    This is only for a caller who owns these tensors, has synchronised the device since they were written, and passes
    nothing computed inside as a parameter. A CUDA graph keeps what held when it was captured.
    """
    module = extension()[0]
    put = getattr(module, "set_constants_ready", lambda ready: ready)  # an older build has none
    before = put(True)
    try:
        yield
    finally:
        put(before)


def native_operators(*names: str) -> dict[str, Callable[..., Any]]:
    """By name, the operators of the extension. Each is looked up on its first call, after the extension is loaded."""
    return {name: _native_operator(name) for name in names}


def _native_operator(name: str) -> Callable[..., Any]:
    @functools.cache
    def overload() -> Callable[..., Any]:
        return getattr(torch.ops.hyperseg_native, name).default

    return lambda *args: overload()(*args)
