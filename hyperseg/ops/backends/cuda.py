"""The cuda backend: CUDA C++ kernels, compiled into the extension."""

import functools
import re
from typing import Any

import torch
from torch import Tensor

from hyperseg.ops.backends.backend import Backend, Reasons, any_of_dtype, device_of
from hyperseg.ops.backends.native import emulated, extension, native_operators

SUPPORTED = native_operators(
    "context_head",
    "decoder_level",
    "decoder_level_argmax",
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


_MOST_GATE_BYTES = 27 << 10  # 99 KB less the operands, as in csrc/cuda/encoder/mbconv.cu


def _unavailable_reasons() -> Reasons:
    module, message = extension()
    if module is None:
        return [message or "the extension hyperseg._C does not load"]
    if not module.cuda_architectures:
        return ["the extension hyperseg._C was built without CUDA kernels"]
    if emulated():
        return []
    if not torch.cuda.is_available():
        return ["this machine has no CUDA device that PyTorch can use"]
    devices = range(torch.cuda.device_count())
    return [] if any(not _device_reasons(i) for i in devices) else _device_reasons(0)


@functools.cache
def _device_reasons(index: int) -> Reasons:
    module = extension()[0]
    assert module is not None
    return device_reasons(torch.cuda.get_device_capability(index), module.cuda_architectures)


def device_reasons(capability: tuple[int, int], architectures: str) -> Reasons:
    """Return why a build has no code for a GPU; empty if it has.

    Args:
        capability: the GPU's compute capability.
        architectures: of the build, in CMake's words with spaces between: ``80-real`` is machine code, ``100`` also
            PTX, from which the driver compiles for any later GPU. Machine code runs on later minor versions too.
    """
    major, minor = capability
    card = f"this GPU is of compute capability {major}.{minor}"
    if capability < (8, 0):
        return [f"{card}; the CUDA kernels need 8.0 or later"]
    for word in architectures.split():
        if match := re.fullmatch(r"(\d+)(\d)([af]?)(-real|-virtual)?", word):
            built = int(match[1]), int(match[2])
            same = built[0] == major and built[1] <= minor and match[4] != "-virtual"
            later = built <= capability and match[4] != "-real"
            if built == capability or (not match[3] and (same or later)):
                return []
    advice = f"TORCH_CUDA_ARCH_LIST={major}.{minor} python setup.py build_ext"
    return [f"{card}, and the extension hyperseg._C was built for {architectures}; run `{advice}`"]


def _call_reasons(operator: str, args: tuple[Any, ...]) -> Reasons:
    device, expected = device_of(args), "cpu" if emulated() else "cuda"
    if device.type != expected:
        return [f"it takes {expected} tensors, not {device.type}"]
    if device.type == "cuda" and (reasons := _device_reasons(device.index)):
        return reasons
    if any_of_dtype(torch.float64, args):
        return ["it has no float64 kernels"]
    if operator == "mbconv":
        return _hidden_reasons(args[0], args[3].shape[0])
    if operator == "mbconv_chain":
        return _hidden_reasons(args[0], max(w.shape[0] for w in args[1] if w.dim() == 3))
    return []


def _hidden_reasons(x: Tensor, hidden: int) -> Reasons:
    """A block of threads keeps the gates of all hidden channels in shared memory."""
    if hidden <= (most := _MOST_GATE_BYTES // x.element_size()):
        return []
    return [f"its kernels take at most {most} hidden channels of {str(x.dtype)[6:]}, not {hidden}"]


CUDA = Backend("cuda", "CUDA C++", SUPPORTED, _unavailable_reasons, _call_reasons)
