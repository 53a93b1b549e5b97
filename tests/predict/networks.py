"""A network that is quick and whose output is known, its engine, and the labels of a module by definition."""

from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from hyperseg.data import CAMVID
from hyperseg.models import HyperSeg


class NearestColor(HyperSeg):
    """Gives each pixel the class whose colour is nearest, so it finds the labels of an image painted in those colours.

    Like every model, it takes normalised images.
    """

    def __init__(self, table=CAMVID, num_classes=None, name="hyperseg-s-camvid", resolution=(96, 128)):
        torch.nn.Module.__init__(self)  # without the network's layers
        self.table = table
        self.config = SimpleNamespace(
            name=name,
            dataset=table.name,
            num_classes=num_classes or len(table),
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            resolution=resolution,
            class_names=None,
        )

    def forward(self, images):
        mean, std = mean_and_std(self.config)
        colors = torch.tensor(self.table.colors) / 255
        return -((images * std + mean)[:, None] - colors.view(1, -1, 3, 1, 1)).square().sum(2)


class Engine:
    """Like the engine that build_engine returns: uint8 frames of one size to labels or logits."""

    def __init__(self, model, size):
        self.model, self.size = model, tuple(size)

    def at(self, size, check):
        return type(self)(self.model, size)

    def logits(self, frames):
        assert frames.dtype == torch.uint8
        assert tuple(frames.shape) == (1, *self.size, 3)
        return logits(self.model, frames)

    def __call__(self, frames):
        return self.logits(frames).argmax(1).to(torch.uint8)


def segment(model, image, size=None):
    """Labels uint8 [H, W] of a module in eval mode, as Predictor defines them, in plain PyTorch."""
    assert not model.training
    shown = image if size is None else np.array(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))
    with torch.inference_mode():
        scores = logits(model, torch.from_numpy(shown.copy())[None])
        scores = torch.nn.functional.interpolate(scores, size=image.shape[:2], mode="bilinear", align_corners=False)
    return scores[0].argmax(0).to(torch.uint8).numpy()


def logits(model, frames):
    mean, std = mean_and_std(model.config)
    return model((frames.permute(0, 3, 1, 2) / 255 - mean) / std)


def mean_and_std(config):
    return (torch.tensor(values).view(1, 3, 1, 1) for values in (config.mean, config.std))
