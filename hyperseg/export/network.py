"""The network that every format traces: folded as an engine runs it, from uint8 frames to labels and logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hyperseg.ops._layout import resize_logits
from hyperseg.runtime.folding import FoldedNetwork


class ExportedNetwork(nn.Module):
    """The folded network with padding and normalisation before it, and the step to full size after it.

    Args:
        network: of any dtype. Pixels are normalised, and logits resized and compared, in float32.
    """

    def __init__(self, network: FoldedNetwork) -> None:
        super().__init__()
        self.network = network

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
