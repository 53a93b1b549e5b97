"""The Triton backend: kernels in ``hyperseg.kernels``, imported on first use."""

import functools
import importlib
import importlib.util
import os

import torch

from hyperseg.ops.backends import Backend, compiled, register


def _interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _unavailable() -> list[str]:
    if not _installed():
        return ["Triton is not installed; `pip install triton` (Linux)"]
    if not torch.cuda.is_available() and not _interpreting():
        return ["this machine has no CUDA device that PyTorch can use (TRITON_INTERPRET=1 runs the kernels on the CPU)"]
    return []


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def _objections(*args) -> list[str]:
    first = next(a for a in args if isinstance(a, torch.Tensor))
    if first.device.type == "cuda":
        return []
    if not _interpreting():
        return [f"it takes cuda tensors, not {first.device.type}"]
    if _any_of_type(torch.bfloat16, args):
        return ["Triton's interpreter computes bfloat16 wrongly"]
    return []


def _objections_no_double(*args) -> list[str]:
    return _objections(*args) + (["it has no float64 kernels"] if _any_of_type(torch.float64, args) else [])


def _any_of_type(dtype: torch.dtype, args: tuple) -> bool:
    """Of any tensor: an operator's first one may be frames."""
    return any(isinstance(a, torch.Tensor) and a.dtype == dtype for a in args)


def _call(name: str):
    """``hyperseg.kernels.x.x`` for operator x, and ``hyperseg.kernels.x.x_backward`` for its gradient."""

    @functools.cache
    def function():
        return getattr(importlib.import_module(f"hyperseg.kernels.{name.removesuffix('_backward')}"), name)

    return lambda *args: function()(*args)


register(Backend("triton", "Triton kernels, on CUDA devices", _unavailable, compiled(_call, _objections_no_double)))
