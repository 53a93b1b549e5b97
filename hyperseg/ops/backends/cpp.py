"""The cpp backend: C++ on the CPU, with AVX-512, AVX2 or baseline instructions chosen when it is loaded."""

import functools
from typing import Any

from hyperseg.ops.backends.backend import Backend, Reasons, device_type, level_then_argmax
from hyperseg.ops.backends.native import emulated, extension, native_operators

SUPPORTED = native_operators(
    "decoder_level",
    "decoder_level_backward",
    "generate_weights",
    "generate_weights_backward",
    "mbconv",
    "mbconv_chain",
    "normalise_frames",
    "patch_conv2d",
    "patch_conv2d_backward",
    "patch_inverted_residual",
    "patch_inverted_residual_backward",
    "patch_inverted_residual_batch_norm",
    "patch_inverted_residual_batch_norm_backward",
    "pointwise_conv",
    "stem",
    "upsample_argmax",
    "upsample_cross_entropy",
    "upsample_cross_entropy_backward",
)
SUPPORTED["decoder_level_argmax"] = level_then_argmax(SUPPORTED["decoder_level"], SUPPORTED["upsample_argmax"])


@functools.cache  # the extension is loaded once per process
def _unavailable_reasons() -> Reasons:
    if emulated():
        return ["this build of the extension has only CUDA kernels, for tests on the CPU"]
    message = extension()[1]
    return [message] if message else []


def _call_reasons(operator: str, args: tuple[Any, ...]) -> Reasons:
    device = device_type(args)
    return [] if device == "cpu" else [f"it takes cpu tensors, not {device}"]


CPP = Backend("cpp", "C++ on the CPU", SUPPORTED, _unavailable_reasons, _call_reasons)
