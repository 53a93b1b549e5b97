"""Scores from a confusion matrix under the two protocols in use. They differ in classes that do not occur.

`official` is what the authors' test.py prints (SPEC H.2): float32, a mean over all classes, where a class without any
pixel counts as 0. `standard` is what the benchmarks compute: a class counts if any labelled pixel has it as label or
prediction, so a class that is only predicted counts as 0 and one that does not occur is left out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hyperseg.data.errors import DataError


class NoLabelledPixelError(DataError):
    """There is nothing to score: no pixel has a label that counts."""


@dataclass(frozen=True)
class Scores:
    """Scores of one protocol, from 0 to 1. None: the class does not count.

    miou: mean of `per_class`, the intersection over union of each class.
    pixel_accuracy: share of the labelled pixels whose prediction is right.
    class_accuracy: mean of `accuracy_per_class`, the share of each class's pixels whose prediction is right.
    """

    miou: float
    per_class: tuple[float | None, ...]
    pixel_accuracy: float
    class_accuracy: float
    accuracy_per_class: tuple[float | None, ...]

    def document(self) -> dict[str, Any]:
        """Return the scores for JSON."""
        return {
            "miou": self.miou,
            "per_class": list(self.per_class),
            "pixel_accuracy": self.pixel_accuracy,
            "class_accuracy": self.class_accuracy,
            "accuracy_per_class": list(self.accuracy_per_class),
        }


def standard(confusion: np.ndarray, other: np.ndarray | None = None) -> Scores:
    """Score by the protocol `standard`.

    Args:
        confusion: int64 ``[K, K]``, rows are labels.
        other: int64 ``[K]``, the labelled pixels of each class whose prediction is no class; None: there are none.

    Raises:
        NoLabelledPixelError: all counts are 0.
    """
    confusion, other = _checked(confusion, other)
    # Python's integers and their division, which rounds once: exact for any count.
    right = [int(count) for count in np.diag(confusion)]
    labelled = [int(row) + int(rest) for row, rest in zip(confusion.sum(1), other, strict=True)]
    predicted = [int(column) for column in confusion.sum(0)]
    unions = [row + column - hit for row, column, hit in zip(labelled, predicted, right, strict=True)]
    ious = tuple(hit / union if union else None for hit, union in zip(right, unions, strict=True))
    accuracies = tuple(hit / row if row else None for hit, row in zip(right, labelled, strict=True))
    return Scores(_mean(ious), ious, sum(right) / sum(labelled), _mean(accuracies), accuracies)


def official(confusion: np.ndarray, other: np.ndarray | None = None) -> Scores:
    """Score by the protocol `official`; arguments and errors as :func:`standard`."""
    confusion, other = _checked(confusion, other)
    counts = torch.from_numpy(np.column_stack([confusion, other])).float()
    right, labelled, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)[:-1]
    ious = right / (labelled + predicted - right + 1e-6)
    accuracies = right / (labelled + 1e-6)
    return Scores(
        float(ious.mean()),
        tuple(ious.tolist()),
        float(right.sum() / counts.sum()),
        float(accuracies.mean()),
        tuple(accuracies.tolist()),
    )


PROTOCOLS: dict[str, Callable[[np.ndarray, np.ndarray | None], Scores]] = {"official": official, "standard": standard}


def _checked(confusion: np.ndarray, other: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    other = np.zeros(len(confusion), np.int64) if other is None else other
    if not (confusion.any() or other.any()):
        raise NoLabelledPixelError("there is no labelled pixel: every pixel is ignored, so there is nothing to score")
    return confusion, other


def _mean(values: Sequence[float | None]) -> float:
    present = [value for value in values if value is not None]
    return sum(present) / len(present)
