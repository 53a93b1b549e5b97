"""The network that every format traces: folded as an engine runs it, from uint8 frames to labels and logits."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from hyperseg.models import HyperSeg
from hyperseg.ops._layout import resize_logits
from hyperseg.runtime.folding import FoldedNetwork


class ExportedNetwork(nn.Module):
    """The folded network with padding and normalisation before it, and the step to full size after it.

    Args:
        model: any network; it is copied.
        dtype: of weights and maps. Pixels are normalised, and logits resized and compared, in float32.
        fuse: operators that run parts of it, see :class:`FoldedNetwork`.
    """

    def __init__(self, model: HyperSeg, dtype: torch.dtype = torch.float32, fuse: bool | Collection[str] = False):
        super().__init__()
        self.network = FoldedNetwork(model, fuse).to(dtype)

    def logits(self, frames: Tensor) -> Tensor:
        """Return float32 logits ``[N, num_classes, H, W]`` of uint8 frames ``[N, H, W, 3]``."""
        height, width = frames.shape[1:3]
        strided = self.network.from_frames(frames, labels=False).float()
        return resize_logits(strided, *self.network.config.padded_size((height, width)))[:, :, :height, :width]


class Labels(ExportedNetwork):
    """Frames to labels, uint8 ``[N, H, W]``."""

    def forward(self, frames: Tensor) -> Tensor:
        return self.network.from_frames(frames)


class Logits(ExportedNetwork):
    """Frames to float32 logits at their size."""

    def forward(self, frames: Tensor) -> Tensor:
        return self.logits(frames)


class LabelsAndLogits(ExportedNetwork):
    """Frames to both, by plain operations: for runtimes without an operator for both steps to full size."""

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.logits(frames)
        return logits.argmax(1).to(torch.uint8), logits


NETWORKS: dict[str, type[ExportedNetwork]] = {"labels": Labels, "logits": Logits}
