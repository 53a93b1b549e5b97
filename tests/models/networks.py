"""Networks and images shared by test files."""

import functools

from torch import Tensor

from hyperseg.models import HyperSeg, create_model, probe_frames, synthesize_weights
from tests import golden

NAMES = list(golden.VARIANTS)
# One of each architecture (SPEC A): v1_0, unify, v0_1.
KINDS = ["hyperseg-s-camvid", "hyperseg-s-cityscapes", "hyperseg-l-voc"]


@functools.cache
def network(name: str) -> HyperSeg:
    """Return a network with synthetic weights in eval mode. It is cached: copy it before you change it."""
    return synthesize_weights(create_model(name)).eval()


def images(height: int, width: int, batch: int = 1, seed: int = 0) -> Tensor:
    """Return smooth normalised images: on white noise synthetic networks can be ill-conditioned."""
    return (probe_frames(batch, (height, width), seed).permute(0, 3, 1, 2).float() / 255 - 0.45) / 0.225


def relative_rms(actual: Tensor, expected: Tensor) -> float:
    """Return the RMS of the difference, relative to that of the expected values."""
    actual, expected = actual.detach().double(), expected.detach().double()
    return ((actual - expected).square().mean().sqrt() / expected.square().mean().sqrt()).item()
