"""Networks that are quick and whose scores are known."""

import torch

from hyperseg.data import CAMVID
from hyperseg.models import HyperSeg, model_config
from hyperseg.runtime import Engine


class Painted(HyperSeg):
    """Scores the classes of a pixel by how near its colour is to theirs; a third of the score comes from the left.

    So scores depend on neighbours, and the network is not symmetric.
    """

    def __init__(self, table=CAMVID, name="hyperseg-s-camvid", **changes):
        torch.nn.Module.__init__(self)  # without the network's layers
        self.colors = torch.nn.Parameter(torch.tensor(table.colors) / 255)
        self.config = model_config(name).replace(num_classes=len(table), **changes)

    def forward(self, images):
        mean, std = (torch.tensor(each).view(1, 3, 1, 1).to(images) for each in (self.config.mean, self.config.std))
        pixels = images * std + mean
        scores = -(pixels[:, None] - self.colors.view(1, -1, 3, 1, 1)).square().sum(2)
        shifted = torch.cat([scores[..., :1], scores[..., :-1]], dim=3)
        return 20 * (scores * 2 + shifted) / 3


class PaintedEngine(Engine):
    """Runs a module as an engine does: frames of one size and batch."""

    def __init__(self, model, size, batch):
        self.model, self.size, self.batch = model, tuple(size), batch
        self.others = None

    def at(self, size, check):
        self.others.append((tuple(size), self.batch, check))
        other = PaintedEngine(self.model, size, self.batch)
        other.others = self.others
        return other

    def logits(self, frames):
        assert frames.dtype == torch.uint8
        assert tuple(frames.shape) == (self.batch, *self.size, 3)
        mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (self.model.config.mean, self.model.config.std))
        return self.model((frames.permute(0, 3, 1, 2) / 255 - mean) / std)

    def __call__(self, frames):
        return self.logits(frames).argmax(1).to(torch.uint8)
