"""The compiled backends: ``cpp`` (CPU) and ``cuda``, both in ``hyperseg._C``, as ``torch.ops.hyperseg_native.*``."""

import functools
import importlib
import importlib.machinery
import importlib.util
import os
import sys

import torch

from hyperseg.ops.backends import Backend, Implementation, compiled, register


@functools.cache
def extension():
    """``(module, None)``, or ``(None, sentence)`` where it was not built or does not load.

    HYPERSEG_EXTENSION names another build of it, such as one with sanitizers.
    """
    other = os.environ.get("HYPERSEG_EXTENSION")
    if other and not os.path.isfile(other):
        return None, f"HYPERSEG_EXTENSION is {other}, where no file is; name a build of hyperseg._C, or unset it"
    try:
        return _load(other) if other else importlib.import_module("hyperseg._C"), None
    except ModuleNotFoundError:
        return None, "the extension hyperseg._C was not built; run `python setup.py build_ext`"
    except ImportError as error:
        return None, f"the extension hyperseg._C does not load ({error}); rebuild it with `python setup.py build_ext`"


def _load(path: str):
    loader = importlib.machinery.ExtensionFileLoader("hyperseg._C", path)
    spec = importlib.util.spec_from_file_location("hyperseg._C", path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    sys.modules["hyperseg._C"] = module
    return module


def emulated() -> bool:
    """Whether this build of the extension runs its CUDA kernels on the CPU, for tests: see csrc/shim/README.md."""
    module = extension()[0]
    return module is not None and module.cuda_architectures == "shim"


def _unavailable_cpp() -> list[str]:
    sentence = extension()[1]
    if emulated():
        return ["this build of the extension has only CUDA kernels, for tests on the CPU"]
    return [sentence] if sentence else []


def _unavailable_cuda() -> list[str]:
    module, sentence = extension()
    if module is None:
        return [sentence]
    if not module.cuda_architectures:
        return ["the extension hyperseg._C was built without CUDA kernels"]
    if emulated() or torch.cuda.is_available():
        return []
    return ["this machine has no CUDA device that PyTorch can use"]


def _cpp_objections(*args) -> list[str]:
    first = next(a for a in args if isinstance(a, torch.Tensor))
    return [] if first.device.type == "cpu" else [f"it takes cpu tensors, not {first.device.type}"]


def _cuda_objections(*args) -> list[str]:
    first = next(a for a in args if isinstance(a, torch.Tensor))
    device = "cpu" if emulated() else "cuda"
    if first.device.type != device:
        return [f"it takes {device} tensors, not {first.device.type}"]
    # Any of them: an operator's first tensor may be frames.
    double = any(isinstance(a, torch.Tensor) and a.dtype == torch.float64 for a in args)
    return ["it has no float64 kernels"] if double else []


def _call(name: str):
    """The native operator; looked up on the first call, when the extension is certainly loaded."""

    @functools.cache
    def overload():
        return getattr(torch.ops.hyperseg_native, name).default

    return lambda *args: overload()(*args)


register(Backend("cpp", "C++ on the CPU", _unavailable_cpp, compiled(_call, _cpp_objections)))
_cuda = compiled(_call, _cuda_objections) | {
    "decoder_level_argmax": Implementation(_call("decoder_level_argmax"), _cuda_objections)
}
register(Backend("cuda", "CUDA C++", _unavailable_cuda, _cuda))
