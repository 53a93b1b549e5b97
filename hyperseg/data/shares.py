"""The share of each class in labels."""

from dataclasses import dataclass

import numpy as np

from hyperseg.data.labels import LabelSet
from hyperseg.images.arrays import check_labels


@dataclass(frozen=True)
class ClassShare:
    """A class that is present in the labels: its number of pixels, and their fraction of all labelled pixels."""

    index: int
    name: str
    pixels: int
    share: float


def label_counts(labels: np.ndarray) -> np.ndarray:
    """Return how many pixels of labels (uint8 [H, W]) have each index: int64 [256]."""
    counts = np.zeros(256, np.int64)
    for rows in range(0, len(labels), 256):  # bincount copies to int64, eight times the memory
        counts += np.bincount(labels[rows : rows + 256].ravel(), minlength=256)
    return counts


def class_shares(labels: np.ndarray, table: LabelSet) -> list[ClassShare]:
    """Return the classes present in labels (uint8 [H, W]), largest first.

    Their shares add up to 1: ignored pixels do not count.
    Raises ValueError for labels that are not uint8 [H, W] or contain an index that is neither a class nor ignored.
    """
    check_labels(labels)
    counts = label_counts(labels)
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
