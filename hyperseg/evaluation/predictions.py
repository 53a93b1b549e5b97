"""Predictions that are files already, of any model: label PNGs in a folder, scored without a network."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hyperseg._files import printable
from hyperseg.data.cityscapes import TRAIN_ID_TO_ID
from hyperseg.data.dataset import Dataset, Item
from hyperseg.data.errors import DataError
from hyperseg.data.files import DataFile
from hyperseg.data.labels import CITYSCAPES
from hyperseg.data.masks import read_indices
from hyperseg.evaluation.submission import frame_name

IDS = ("classes", "labelIds")


class PredictionFolder:
    """Finds and reads the predictions of a data set's images. :meth:`prepare` may be called by several threads.

    The file of an image is NAME.png or NAME_labels.png anywhere in the folder, where NAME is the image's name in the
    data set or that of its file; for Cityscapes any CITY_SEQUENCE_FRAME*.png, as its server finds it. It holds an index
    per pixel: grey, palette (its indices) or 16 bits. An index that is no class counts as wrong.

    Args:
        folder: of the predictions; folders inside are searched too.
        dataset: whose images they are of.
        ids: what the indices mean: "classes" of the data set (train ids for Cityscapes), or "labelIds" of Cityscapes.
        device: where labels are compared.

    Attributes:
        files: the PNGs of the folder.
        unused: files of the folder that belong to no image.

    Raises:
        DataError: there is no such folder, or no PNG in it; or `ids` does not go with the data set.
    """

    reads_images = False
    batch = 1

    def __init__(
        self, folder: str | os.PathLike[str], dataset: Dataset, ids: str = "classes", device: str | torch.device = "cpu"
    ) -> None:
        self.folder, self.device, self.classes = Path(folder), torch.device(device), len(dataset.label_set)
        if ids not in IDS:
            raise DataError(f"the indices of predictions are {' or '.join(IDS)}, not {ids!r}")
        if ids == "labelIds" and dataset.label_set.classes != CITYSCAPES.classes:
            raise DataError(f"label ids are Cityscapes'; predictions for {dataset.name} hold class indices")
        self._table = self._values(ids)
        self.files = files = _pngs(self.folder)
        by_name: dict[str, list[Path]] = {}
        for file in files:
            by_name.setdefault(file.stem, []).append(file)
        prefixes: dict[str, list[Path]] = {}
        if dataset.label_set.classes == CITYSCAPES.classes:
            for file in files:
                prefixes.setdefault(frame_name(file.stem), []).append(file)
        self._found = {item.name: _candidates(item, by_name, prefixes) for item in dataset.items}
        used = {file for found in self._found.values() for file in found}
        self.unused = [file for file in files if file not in used]

    def prepare(self, item: Item, image: np.ndarray | None, size: tuple[int, int]) -> np.ndarray:
        """Read the predictions of an image, uint8 [H, W]: its classes, and their number for anything else.

        Raises DataError, which names the file, if it is missing, damaged or not of `size` (H, W).
        """
        found = self._found[item.name]
        if not found:
            looked = f"{item.name}.png or {item.name}_labels.png"
            raise DataError(
                f"there is no prediction for {item.name} in {printable(self.folder)}; {looked} was expected"
            )
        if len(found) > 1:
            listed = " and ".join(map(printable, found[:2]))
            raise DataError(f"there are {len(found)} predictions for {item.name}: {listed}; leave one")
        name = printable(found[0])
        indices = read_indices(DataFile(str(found[0])).read(), name)
        if indices.shape != size:
            height, width = indices.shape
            raise DataError(
                f"{name} is {height}x{width} but the labels are {size[0]}x{size[1]} (height x width); predictions are "
                "scored at the size of the labels and not resized here: write them at that size"
            )
        return self._table[np.clip(indices, -1, len(self._table) - 2)]

    def labels(self, images: Sequence[np.ndarray]) -> list[Tensor]:
        """Return what :meth:`prepare` returned on the device."""
        return [torch.from_numpy(image).to(self.device) for image in images]

    def _values(self, ids: str) -> np.ndarray:
        """Return the class of each index; the last two are of indices that are too large, and negative."""
        table = np.full(258, self.classes, np.uint8)
        if ids == "classes":
            table[: self.classes] = np.arange(self.classes)
        else:
            table[list(TRAIN_ID_TO_ID)] = np.arange(self.classes)
        return table


def _pngs(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"there is no folder {printable(folder)}; give the one that holds the predictions")
    found = (path for path in folder.rglob("*") if path.suffix.lower() == ".png" and path.is_file())
    files = sorted(path for path in found if not path.stem.endswith("_overlay"))  # of `hyperseg predict`
    if not files:
        raise DataError(f"the folder {printable(folder)} holds no PNG; predictions are label PNGs, NAME.png")
    return files


def _candidates(item: Item, by_name: dict[str, list[Path]], prefixes: dict[str, list[Path]]) -> list[Path]:
    stems: Iterable[str] = dict.fromkeys((Path(item.name).name, item.image.stem))
    found = [file for stem in stems for ending in ("", "_labels") for file in by_name.get(f"{stem}{ending}", [])]
    if not found:
        found = prefixes.get(frame_name(Path(item.name).name), [])
    # The same name in several folders of the split: the file whose folders are those of the item.
    inside = [file for file in found if file.with_suffix("").as_posix().endswith(f"/{item.name}")]
    return inside if "/" in item.name and inside else found
