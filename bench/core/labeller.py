"""From frames to labels by any network: the first and the last step that the rows of `bench/fps.py --peers` share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hyperseg.models import HyperSeg
from hyperseg.models.sizes import pad, pixel_affine, scale_pixels
from hyperseg.ops import reference


class Labeller(nn.Module):
    """A network with the first and the last step of every row.

    Frames are normalised in float32 and padded. Scores are resized bilinearly to full size in float32; labels are
    their argmax.

    Args:
        network: images ``[N, 3, H, W]`` of its dtype to scores ``[N, C, h, w]`` at any stride.
        mean, std: of RGB in [0, 1].
        padded: (H, W) of the images.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self, network: nn.Module, mean: Any, std: Any, padded: tuple[int, int], dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.network = network.to(dtype)
        self.padded, self.dtype, self.layout = padded, dtype, torch.contiguous_format
        scale, shift = pixel_affine(mean, std)
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def use_layout(self, layout: torch.memory_format) -> None:
        """Convert the weights to a memory format, and use it for the images."""
        self.layout = layout
        self.network.to(memory_format=layout)

    def strided(self, frames: Tensor) -> Tensor:
        images = pad(scale_pixels(frames, self.scale, self.shift, self.dtype), self.padded)
        scores: Tensor = self.network(images.contiguous(memory_format=self.layout))
        return scores

    def scores(self, frames: Tensor) -> Tensor:
        """Return float32 scores ``[N, C, H, W]`` of uint8 frames ``[N, H, W, 3]``."""
        height, width = frames.shape[1:3]
        return reference.resize_precisely(self.strided(frames), *self.padded)[:, :, :height, :width]

    def forward(self, frames: Tensor) -> Tensor:
        return self.scores(frames).argmax(1).to(torch.uint8)


def plain_labeller(
    model: HyperSeg, network: nn.Module, size: tuple[int, int], dtype: torch.dtype = torch.float32
) -> Labeller:
    """Return a labeller of frames of this size by ``network``, which computes what ``model`` does."""
    config = model.config
    return Labeller(network, config.mean, config.std, config.padded_size(size), dtype).eval()
