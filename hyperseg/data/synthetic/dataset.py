"""The data set of computed scenes."""

import dataclasses
import os
from collections.abc import Iterable
from typing import Any

import numpy as np

from hyperseg.data.dataset import Dataset, Item
from hyperseg.data.errors import DataError
from hyperseg.data.files import DataFile
from hyperseg.data.labels import CITYSCAPES
from hyperseg.data.masks import IndexDecoder
from hyperseg.data.synthetic.canvas import Canvas
from hyperseg.data.synthetic.numbers import Random
from hyperseg.data.synthetic.scene import draw_scene

SPLITS = {"train": 200, "val": 50, "test": 50}  # the default numbers of images
_VERSION = 1  # to be raised when scenes change
_SIDES = (16, 8192)


class SyntheticDataset(Dataset):
    """Scenes of one split. It holds no image but the last one that was drawn.

    Args:
        split: "train", "val" or "test": other scenes in each.
        indices: of the scenes.
        size: height and width.
        seed: other scenes for each.
    """

    def __init__(self, split: str, indices: Iterable[int], size: tuple[int, int], seed: int) -> None:
        self.indices = tuple(sorted(indices))
        self.size, self.seed = size, seed
        self._last: tuple[int, Canvas] | None = None
        form = f"computed street scenes of {size[0]}x{size[1]}, seed {seed}; no files are read"
        items = [_item(split, seed, index) for index in self.indices]
        super().__init__("synthetic", split, form, CITYSCAPES, items, IndexDecoder({}))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_last": None}

    def image(self, index: int) -> np.ndarray:
        """See :meth:`Dataset.image`."""
        return self._canvas(index).image(Random(*self._key(index), "camera noise"))

    def labels(self, index: int) -> np.ndarray:
        """See :meth:`Dataset.labels`."""
        return self._canvas(index).labels()

    def subset(self, indices: Iterable[int]) -> "SyntheticDataset":
        """See :meth:`Dataset.subset`."""
        return SyntheticDataset(self.split, [self.indices[index] for index in indices], self.size, self.seed)

    def manifest(self) -> dict[str, Any]:
        """See :meth:`Dataset.manifest`; a scene is identified by its seed and index."""
        return {
            "data": self.name,
            "split": self.split,
            "form": self.form,
            "label_set": dataclasses.asdict(self.label_set),
            "labels": {"encoding": "computed", "version": _VERSION},
            "files": [[item.name, [self.seed, index, *self.size], None] for item, index in self._pairs()],
        }

    def _pairs(self) -> Iterable[tuple[Item, int]]:
        return zip(self.items, self.indices, strict=True)

    def _key(self, index: int) -> tuple[object, ...]:
        return self.seed, self.split, self.indices[index]

    def _canvas(self, index: int) -> Canvas:
        """Draw a scene, or return it if it was the last one. Threads may each draw the same."""
        index = range(len(self))[index]
        last = self._last
        if last is None or last[0] != index:
            last = self._last = index, draw_scene(*self.size, *self._key(index))
        return last[1]


def _item(split: str, seed: int, index: int) -> Item:
    """Return an item whose files do not exist; reading one says so."""
    name = f"{split}_{seed}_{index:06d}"
    return Item(name, DataFile(f"computed/{name}"), DataFile(f"computed/{name}_labels"))


def open_synthetic(
    root: str | os.PathLike[str],
    split: str,
    images: int | None = None,
    size: str | tuple[int, int] = (256, 512),
    seed: int = 0,
) -> SyntheticDataset:
    """Open computed scenes.

    Args:
        root: not used.
        split: "train", "val" or "test".
        images: their number; default 200 for train, 50 for val and test. A larger set begins with a smaller one.
        size: height and width, also as text: "1024x2048".
        seed: any integer.

    Raises:
        DataError: there is no such split.
        ValueError: a number is out of range.
    """
    if split not in SPLITS:
        raise DataError(f"synthetic has no split {split!r}; give one of {', '.join(SPLITS)}")
    count = SPLITS[split] if images is None else _integer("images", images, 1, 10**6)
    return SyntheticDataset(split, range(count), _size(size), _integer("seed", seed, -(2**63), 2**63 - 1))


def _size(size: object) -> tuple[int, int]:
    sides = size.lower().split("x") if isinstance(size, str) else size
    if not isinstance(sides, (list, tuple)) or len(sides) != 2:
        raise ValueError(f"size is {size!r}; give HEIGHTxWIDTH, such as 1024x2048")
    try:
        height, width = (int(side) if isinstance(side, str) else side for side in sides)
    except ValueError:
        raise ValueError(f"size is {size!r}; give HEIGHTxWIDTH, such as 1024x2048") from None
    return _integer("height", height, *_SIDES), _integer("width", width, *_SIDES)


def _integer(name: str, value: object, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{name} is {value!r}; give a whole number from {low} to {high}")
    return value
