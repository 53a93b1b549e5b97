"""Sizes, and frames of any size as the images that a network takes: normalisation and padding."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hyperseg._text import parse_sides as parse_sides

Channels = Sequence[float] | Tensor


def pad(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Repeat the last row and column of ``[N, C, H, W]`` up to ``size`` (H, W), which is at least theirs."""
    height, width = images.shape[2:]
    if size == (height, width):
        return images
    return F.pad(images, (0, size[1] - width, 0, size[0] - height), mode="replicate")


def pixel_affine(mean: Channels, std: Channels, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Return ``scale`` and ``shift``, float32 ``[3]``, such that ``pixel * scale + shift`` is a normalised uint8 pixel.

    Args:
        mean, std: of RGB in [0, 1], as in :class:`HyperSegConfig`.
        device: device of the results; default: of ``mean`` if it is a tensor, else PyTorch's default device.
    """
    mean, std = (torch.as_tensor(values, dtype=torch.float64, device=device) * 255 for values in (mean, std))
    return (1 / std).to(torch.float32), (-mean / std).to(torch.float32)


def scale_pixels(frames: Tensor, scale: Tensor, shift: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Compute ``frames * scale + shift`` in float32; arguments of :func:`pixel_affine`, result of :func:`normalise`."""
    # Broadcast over whole rows of pixels: over a dimension of 3 the CPU does not vectorise.
    scales, shifts = (values.repeat(frames.shape[2]) for values in (scale, shift))
    rows = torch.addcmul(shifts, frames.flatten(2).to(torch.float32), scales)
    return rows.to(dtype).view(frames.shape).permute(0, 3, 1, 2)


def normalise(frames: Tensor, mean: Channels, std: Channels, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normalise uint8 RGB frames for a network.

    Args:
        frames: uint8 ``[N, H, W, 3]``.
        mean, std: of RGB in [0, 1], as in :class:`HyperSegConfig`.
        dtype: of the result; the arithmetic is float32.

    Returns:
        ``[N, 3, H, W]`` in channels-last memory, on the frames' device.
    """
    return scale_pixels(frames, *pixel_affine(mean, std, frames.device), dtype)
