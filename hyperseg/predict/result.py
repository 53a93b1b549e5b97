"""Results of prediction: the labels of a frame, and the share of each class in them."""

from dataclasses import dataclass

import numpy as np

from hyperseg.data.labels import LabelSet
from hyperseg.predict.sources import Frame


@dataclass(frozen=True)
class ClassShare:
    """A class that is present in the labels: its number of pixels, and their fraction of all labelled pixels."""

    index: int
    name: str
    pixels: int
    share: float


@dataclass(frozen=True)
class Prediction:
    """A frame, its labels (uint8 [H, W], the size of the frame's image) and the label set that names them."""

    frame: Frame
    labels: np.ndarray
    label_set: LabelSet

    @property
    def shares(self) -> list[ClassShare]:
        """The classes present, see `class_shares`."""
        return class_shares(self.labels, self.label_set)


def class_shares(labels: np.ndarray, table: LabelSet) -> list[ClassShare]:
    """Return the classes present in labels (uint8 [H, W]), largest first.

    Their shares add up to 1: ignored pixels do not count.
    Raises ValueError for labels that are not uint8 [H, W] or contain an index that is neither a class nor ignored.
    """
    check_labels(labels)
    counts = np.zeros(256, np.int64)
    for rows in range(0, len(labels), 256):  # bincount copies to int64, eight times the memory
        counts += np.bincount(labels[rows : rows + 256].ravel(), minlength=256)
    counts[table.ignore_index] = 0
    if counts[len(table) :].any():
        stray = int(np.flatnonzero(counts[len(table) :])[0]) + len(table)
        raise ValueError(
            f"the labels contain the index {stray}, but {table.name} has classes 0 to {len(table) - 1} "
            f"and ignores {table.ignore_index}"
        )
    total = int(counts.sum())
    present = sorted(np.flatnonzero(counts).tolist(), key=lambda index: (-counts[index], index))
    return [ClassShare(i, table.classes[i], int(counts[i]), int(counts[i]) / total) for i in present]


def check_labels(labels: np.ndarray) -> None:
    """Raise ValueError for labels that are not uint8 [H, W]."""
    if labels.dtype != np.uint8 or labels.ndim != 2:
        raise ValueError(
            f"labels are uint8 [H, W]; got {labels.dtype} {list(labels.shape)}; convert them with .astype(np.uint8)"
        )


def check_image(image: np.ndarray) -> None:
    """Raise TypeError for an image that is no array, ValueError for one that is not uint8 [H, W, 3]."""
    if not isinstance(image, np.ndarray):
        raise TypeError(
            f"an image is a NumPy array, uint8 [H, W, 3] RGB; got {type(image).__module__}.{type(image).__name__}; "
            "read_image reads a file, and np.array(image.convert('RGB')) converts an image of Pillow"
        )
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"an image is uint8 [H, W, 3] RGB; got {image.dtype} {list(image.shape)}")
