"""The triton backend: kernels in ``hyperseg.kernels``, imported on first use."""

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import torch

from hyperseg.ops._chain import block_by_block
from hyperseg.ops.backends.backend import Backend, Reasons, any_of_dtype, device_type, level_then_argmax


def _launcher(module: str, function: str) -> Callable[..., Any]:
    """``hyperseg.kernels.<module>.<function>``, imported on its first call."""

    @functools.cache
    def imported() -> Callable[..., Any]:
        return getattr(importlib.import_module(f"hyperseg.kernels.{module}"), function)

    return lambda *args: imported()(*args)


_MODULES = {
    "context_head": "context_head",
    "decoder_level": "decoder_level",
    "decoder_level_backward": "decoder_level",
    "generate_weights": "generate_weights",
    "generate_weights_backward": "generate_weights",
    "mbconv": "mbconv",
    "normalise_frames": "normalise_frames",
    "patch_conv2d": "patch_conv2d",
    "patch_conv2d_backward": "patch_conv2d_backward",
    "patch_inverted_residual": "patch_inverted_residual",
    "patch_inverted_residual_backward": "patch_inverted_residual",
    "patch_inverted_residual_batch_norm": "patch_inverted_residual",
    "patch_inverted_residual_batch_norm_backward": "patch_inverted_residual",
    "pointwise_conv": "pointwise_conv",
    "stem": "stem",
    "upsample_argmax": "upsample_argmax",
    "upsample_cross_entropy": "upsample_cross_entropy",
    "upsample_cross_entropy_backward": "upsample_cross_entropy",
}
SUPPORTED = {operator: _launcher(module, operator) for operator, module in _MODULES.items()}
SUPPORTED["mbconv_chain"] = block_by_block(SUPPORTED["mbconv"])
SUPPORTED["decoder_level_argmax"] = level_then_argmax(SUPPORTED["decoder_level"], SUPPORTED["upsample_argmax"])


def interpreting() -> bool:
    """Whether Triton runs its kernels on the CPU, in its interpreter (TRITON_INTERPRET=1)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def _unavailable_reasons() -> Reasons:
    if not _installed():
        return ["Triton is not installed; `pip install triton` (Linux)"]
    if not torch.cuda.is_available() and not interpreting():
        return ["this machine has no CUDA device that PyTorch can use (TRITON_INTERPRET=1 runs the kernels on the CPU)"]
    return []


def _call_reasons(operator: str, args: tuple[Any, ...]) -> Reasons:
    device = device_type(args)
    reasons = []
    if device != "cuda":
        if not interpreting():
            reasons.append(f"it takes cuda tensors, not {device}")
        elif any_of_dtype(torch.bfloat16, args):
            reasons.append("Triton's interpreter computes bfloat16 wrongly")
    if any_of_dtype(torch.float64, args):
        reasons.append("it has no float64 kernels")
    return reasons


TRITON = Backend("triton", "Triton kernels, on CUDA devices", SUPPORTED, _unavailable_reasons, _call_reasons)
