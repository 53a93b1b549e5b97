"""A small data set in files."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hyperseg.data.dataset import Dataset, Item
from hyperseg.data.files import DataFile
from hyperseg.data.labels import CAMVID
from hyperseg.data.masks import IndexDecoder

VALUES = {**{index: index for index in range(12)}, 255: 255}


def files_dataset(folder: Path, sizes, values=VALUES, labels=True) -> Dataset:
    """Write one image of random blocks per (height, width), with labels, and return their data set."""
    folder.mkdir(parents=True, exist_ok=True)
    items = []
    for number, (height, width) in enumerate(sizes):
        generator = np.random.default_rng(number)
        blocks = generator.integers(0, 256, (-(-height // 4), -(-width // 4), 3), dtype=np.uint8)
        image = blocks.repeat(4, 0).repeat(4, 1)[:height, :width]
        name = f"image{number:02d}"
        Image.fromarray(image).save(folder / f"{name}.png")
        Image.fromarray((image[:, :, 0] % 12).astype(np.uint8)).save(folder / f"{name}_labels.png")
        label = DataFile(str(folder / f"{name}_labels.png")) if labels else None
        items.append(Item(name, DataFile(str(folder / f"{name}.png")), label))
    return Dataset("toy", "train", "random blocks", CAMVID, items, IndexDecoder(values))


@pytest.fixture
def make_dataset(tmp_path):
    """Return `files_dataset`, in the folder "data" of this test."""

    def make(*sizes, **options):
        return files_dataset(tmp_path / "data", sizes, **options)

    return make
