"""The cuda backend: CUDA C++ kernels, compiled into the extension."""

from typing import Any

import torch
from torch import Tensor

from hyperseg.ops.backends.backend import Backend, Reasons, device_type
from hyperseg.ops.backends.native import emulated, extension, native_operators

SUPPORTED = native_operators(
    "decoder_level",
    "decoder_level_argmax",
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
    "stem",
    "upsample_argmax",
    "upsample_cross_entropy",
    "upsample_cross_entropy_backward",
)


def _unavailable_reasons() -> Reasons:
    module, message = extension()
    if module is None:
        return [message or "the extension hyperseg._C does not load"]
    if not module.cuda_architectures:
        return ["the extension hyperseg._C was built without CUDA kernels"]
    if emulated() or torch.cuda.is_available():
        return []
    return ["this machine has no CUDA device that PyTorch can use"]


def _call_reasons(operator: str, args: tuple[Any, ...]) -> Reasons:
    device, expected = device_type(args), "cpu" if emulated() else "cuda"
    if device != expected:
        return [f"it takes {expected} tensors, not {device}"]
    # Any tensor: the first argument of an operator may be uint8 frames.
    double = any(isinstance(a, Tensor) and a.dtype == torch.float64 for a in args)
    return ["it has no float64 kernels"] if double else []


CUDA = Backend("cuda", "CUDA C++", SUPPORTED, _unavailable_reasons, _call_reasons)
