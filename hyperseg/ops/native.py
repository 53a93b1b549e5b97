"""The compiled backends: ``cpp`` (CPU) and ``cuda``, both in ``hyperseg._C``, as ``torch.ops.hyperseg_native.*``."""

import functools
import importlib
import importlib.machinery
import importlib.util
import os
import sys

import torch

from hyperseg.ops.backends import Backend, Implementation, register


@functools.cache
def extension():
    """``(module, None)``, or ``(None, sentence)`` where it was not built or does not load.

    HYPERSEG_EXTENSION names another build of it, such as one with sanitizers.
    """
    try:
        other = os.environ.get("HYPERSEG_EXTENSION")
        return _load(other) if other else importlib.import_module("hyperseg._C"), None
    except ModuleNotFoundError:
        return None, "the extension hyperseg._C was not built; run `python setup.py build_ext`"
    except ImportError as error:
        return None, f"the extension hyperseg._C does not load ({error}); rebuild it with `python setup.py build_ext`"


def _load(path: str):
    if not os.path.isfile(path):
        raise ImportError(f"HYPERSEG_EXTENSION is {path}, where no file is")
    loader = importlib.machinery.ExtensionFileLoader("hyperseg._C", path)
    spec = importlib.util.spec_from_file_location("hyperseg._C", path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    sys.modules["hyperseg._C"] = module
    return module


def _unavailable_cpp() -> list[str]:
    sentence = extension()[1]
    return [sentence] if sentence else []


def _unavailable_cuda() -> list[str]:
    module, sentence = extension()
    if module is None:
        return [sentence]
    if not module.cuda_architectures:
        return ["the extension hyperseg._C was built without CUDA kernels"]
    return [] if torch.cuda.is_available() else ["this machine has no CUDA device that PyTorch can use"]


def _objections_for(device_type: str):
    def objections(*args) -> list[str]:
        first = next(a for a in args if isinstance(a, torch.Tensor))
        return [] if first.device.type == device_type else [f"it takes {device_type} tensors, not {first.device.type}"]

    return objections


def _call(name: str):
    """The native operator; looked up on the first call, when the extension is certainly loaded."""

    @functools.cache
    def overload():
        return getattr(torch.ops.hyperseg_native, name).default

    return lambda *args: overload()(*args)


def _implementations(device_type: str, *names: str) -> dict[str, Implementation]:
    return {name: Implementation(_call(name), _objections_for(device_type)) for name in names}


register(
    Backend(
        "cpp",
        "C++ on the CPU",
        _unavailable_cpp,
        _implementations(
            "cpu",
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
            "upsample_argmax",
            "upsample_cross_entropy",
            "upsample_cross_entropy_backward",
        ),
    )
)
register(Backend("cuda", "CUDA C++", _unavailable_cuda, _implementations("cuda")))
