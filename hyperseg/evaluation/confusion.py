"""The confusion matrix: exact counts of labelled pixels by class and predicted class."""

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

_CHUNK = 2**22  # pixels at a time: their codes take 8 bytes each
VALUES = 256  # of a uint8 label


def histogram(values: Tensor, bins: int) -> Tensor:
    """Count the values 0..bins-1 of an integer tensor: int64 ``[bins]`` on its device, without a host synchronisation.

    Other values are not allowed, and on a GPU not noticed.
    """
    count = _counted if values.device.type == "cpu" else _scattered
    return sum((count(chunk, bins) for chunk in values.flatten().split(_CHUNK)), start=count(values.new_empty(0), bins))


def _counted(values: Tensor, bins: int) -> Tensor:
    return torch.bincount(values, minlength=bins)


def _scattered(values: Tensor, bins: int) -> Tensor:
    """Count on a GPU, where `torch.bincount` would read the largest value back to the host."""
    counts = torch.zeros(bins, dtype=torch.int64, device=values.device)
    return counts.scatter_add_(0, values.long(), torch.ones_like(values, dtype=torch.int64))


def confusion_table(labels: Tensor, predictions: Tensor, classes: int) -> Tensor:
    """Count the pixels by label and prediction.

    Args:
        labels: uint8, any shape.
        predictions: uint8 of the same shape and device.
        classes: number of classes K, 1 to 255.

    Returns:
        int64 ``[256, K + 1]``: a row for each value that labels can have; the last column counts the predictions that
        are no class.

    Raises:
        ValueError: another dtype, shape or number.
    """
    if labels.dtype != torch.uint8 or predictions.dtype != torch.uint8 or labels.shape != predictions.shape:
        raise ValueError(
            f"labels and predictions are uint8 of one shape; got {labels.dtype} {list(labels.shape)} and "
            f"{predictions.dtype} {list(predictions.shape)}"
        )
    if not 1 <= classes <= 255:
        raise ValueError(f"uint8 labels can have 1 to 255 classes, not {classes}")
    codes = labels.int() * (classes + 1) + predictions.int().clamp(max=classes)
    return histogram(codes, VALUES * (classes + 1)).view(VALUES, classes + 1)


class Confusion:
    """A confusion matrix over a set of images. All counts are int64 and stay on the device until they are read.

    Args:
        classes: number of classes K; labels are 0..K-1 or `ignore_index`.
        ignore_index: the label of pixels that do not count.
        device: where labels and predictions are.
    """

    def __init__(self, classes: int, ignore_index: int = 255, device: str | torch.device = "cpu") -> None:
        if not classes <= ignore_index < VALUES:
            raise ValueError(f"the ignored index must be from {classes} to 255, not {ignore_index}")
        self.classes, self.ignore_index = classes, ignore_index
        self.table = torch.zeros((VALUES, classes + 1), dtype=torch.int64, device=device)

    def add(self, labels: Tensor, predictions: Tensor) -> Tensor:
        """Add an image; return its own table, see :func:`confusion_table`."""
        table = confusion_table(labels, predictions, self.classes)
        self.table += table
        return table

    def all_reduce(self) -> None:
        """Replace the counts by their sum over all processes of the default group, if there is one."""
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(self.table)

    def counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the matrix, int64 ``[K, K]`` (rows: label, columns: prediction), and per label the pixels without one.

        The latter, int64 ``[K]``, are labelled pixels whose prediction is no class; they count as wrong.

        Raises:
            ValueError: there were labels that are neither a class nor ignored.
        """
        table = self.table.cpu().numpy()
        stray = stray_labels(table, self.ignore_index)
        if stray:
            raise ValueError(
                f"the labels contain {', '.join(map(str, stray[:8]))}, but the classes are 0 to {self.classes - 1} and "
                f"{self.ignore_index} is ignored; map the labels, or correct them"
            )
        return table[: self.classes, :-1].copy(), table[: self.classes, -1].copy()


def stray_labels(table: np.ndarray, ignore_index: int) -> list[int]:
    """Return the labels in a table of :func:`confusion_table` that are neither a class nor ignored."""
    classes = table.shape[1] - 1
    present = np.flatnonzero(table.sum(1))
    return [int(value) for value in present if value >= classes and value != ignore_index]
