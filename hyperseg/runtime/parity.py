"""Parity of whole networks: reference logits, their comparison, and the tolerances of engine and benchmarks."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from hyperseg import ops
from hyperseg.models.hyperseg import HyperSeg
from hyperseg.runtime.precision import exact_float32


@dataclass(frozen=True)
class Tolerance:
    """Largest allowed difference between a network's output and the module's in float32, reference operators.

    Attributes:
        relative_rms: root mean square error of the logits, relative to that of the expected logits.
        relative_max: largest error of the logits, relative to the largest expected magnitude.
        agreement: least percentage of pixels with the expected label.
        clear_agreement: the same of the pixels whose two best expected logits differ by more than six times the
            allowed root mean square error.
        why: source of the error.
    """

    relative_rms: float
    relative_max: float
    agreement: float
    clear_agreement: float
    why: str


# An engine is checked for its relative RMS, a benchmark for all four. Measured on the CPU over the five networks with
# synthesize_weights, reference and C++ backends, on the frame that engines are checked on, sizes 33x57 to 128x256:
# relative RMS 2e-5, 3.5e-3, 4.4e-2, relative maximum 5e-5, 1.1e-2, 1.2e-1 (float32, float16, bfloat16). On some other
# frames hyperseg-l-voc with such weights is so ill-conditioned that 16-bit floats do not determine its logits.
TOLERANCES = {
    torch.float32: Tolerance(1e-4, 1e-4, 99.99, 100.0, "only the order of float32 sums may differ"),
    torch.float16: Tolerance(1.5e-2, 3e-2, 98.5, 99.9, "11 significant bits, rounded after each of about 100 layers"),
    torch.bfloat16: Tolerance(1e-1, 2e-1, 93.0, 99.0, "8 significant bits: eight times float16's rounding"),
}


@dataclass(frozen=True)
class Parity:
    """Difference between an engine's logits and the module's in float32, on one probe frame.

    Attributes:
        relative_rms, relative_max: as in :class:`Tolerance`.
        label_agreement: fraction of pixels with the same label, from 0 to 1.
    """

    relative_rms: float
    relative_max: float
    label_agreement: float


def reference_logits(model: HyperSeg, images: Tensor, device: torch.device) -> Tensor:
    """Return the module's logits in eval mode with the reference operators, in the images' dtype, exactly.

    Args:
        model: any network; it is copied.
        images: normalised ``[N, 3, H, W]``, float32 or float64.
        device: device to compute on, that of the images.

    Returns:
        ``[N, num_classes, H, W]``.
    """
    exact = copy.deepcopy(model).to(device, images.dtype).eval()
    with exact_float32(device), ops.use_backend("reference"), torch.no_grad():
        return exact(images.contiguous())


def compare_logits(logits: Tensor, expected: Tensor) -> Parity:
    """Compare logits ``[N, C, H, W]`` of any floating dtype with the expected ones, in float64."""
    difference = (logits.double() - expected.double()).abs()
    tiny = torch.finfo(torch.float64).tiny
    rms = difference.square().mean().sqrt() / expected.double().square().mean().sqrt().clamp(min=tiny)
    largest = difference.max() / expected.double().abs().max().clamp(min=tiny)
    agreement = (logits.argmax(1) == expected.argmax(1)).double().mean()
    return Parity(rms.item(), largest.item(), agreement.item())
