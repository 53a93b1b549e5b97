"""Predictions as files: palette PNGs of class indices, and what the servers of Cityscapes and PASCAL VOC take."""

import os
import re
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from hyperseg.data.cityscapes import train_id_to_id
from hyperseg.data.dataset import Dataset, Item
from hyperseg.data.drawing import label_image
from hyperseg.data.errors import DataError
from hyperseg.data.labels import CITYSCAPES, VOC, LabelSet
from hyperseg.images.writing import save_image


class PredictionWriter(Protocol):
    """Writes the predictions of one image at a time."""

    def path(self, item: Item) -> Path:
        """Return the file for an image."""
        ...

    def write(self, item: Item, labels: np.ndarray) -> Path:
        """Write labels (uint8 [H, W]) and return the file. Raises OSError."""
        ...


class PalettePredictions:
    """Writes FOLDER/NAME.png: a palette PNG whose values are class indices."""

    def __init__(self, folder: str | os.PathLike[str], table: LabelSet) -> None:
        self.folder, self.table = Path(folder), table

    def path(self, item: Item) -> Path:
        """See :class:`PredictionWriter`."""
        return self.folder / f"{item.name}.png"

    def write(self, item: Item, labels: np.ndarray) -> Path:
        """See :class:`PredictionWriter`."""
        return save_image(label_image(labels, self.table), self.path(item))


class CityscapesSubmission:
    """Writes FOLDER/CITY_SEQUENCE_FRAME_pred_labelIds.png: label ids, so road is 7, in grey; 0 for no class."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def path(self, item: Item) -> Path:
        """See :class:`PredictionWriter`."""
        return self.folder / f"{frame_name(Path(item.name).name)}_pred_labelIds.png"

    def write(self, item: Item, labels: np.ndarray) -> Path:
        """See :class:`PredictionWriter`."""
        return save_image(Image.fromarray(train_id_to_id(_only(labels, CITYSCAPES))), self.path(item))


class VocSubmission:
    """Writes FOLDER/results/VOC2012/Segmentation/comp6_test_cls/NAME.png: palette PNGs, to be packed from `results` on.

    comp6 is the competition for methods that use more than the VOC's own data, such as ImageNet weights.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder) / "results" / "VOC2012" / "Segmentation" / "comp6_test_cls"

    def path(self, item: Item) -> Path:
        """See :class:`PredictionWriter`."""
        return self.folder / f"{Path(item.name).name}.png"

    def write(self, item: Item, labels: np.ndarray) -> Path:
        """See :class:`PredictionWriter`."""
        return save_image(label_image(_only(labels, VOC), VOC), self.path(item))


def submission(folder: str | os.PathLike[str], dataset: Dataset) -> PredictionWriter:
    """Return the writer of files for the server of a data set. Raises DataError if it has none."""
    if dataset.label_set.classes == CITYSCAPES.classes:
        return CityscapesSubmission(folder)
    if dataset.label_set.classes == VOC.classes:
        return VocSubmission(folder)
    raise DataError(
        f"there is no server for the classes of {dataset.name}; --submission is for cityscapes and voc, "
        "and --save-predictions writes label PNGs of any data set"
    )


def frame_name(stem: str) -> str:
    """Return CITY_SEQUENCE_FRAME, by which Cityscapes' server finds a file, or the whole of another name."""
    match = re.match(r"[^_]+_\d{6}_\d{6}", stem)
    return match[0] if match else stem


def _only(labels: np.ndarray, table: LabelSet) -> np.ndarray:
    """Return labels with 255 for what is no class."""
    return np.where(labels < len(table), labels, np.uint8(255))
