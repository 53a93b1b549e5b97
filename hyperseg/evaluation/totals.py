"""Counts and scores of an evaluation: per set on the device, per image on the host, summed over processes."""

import os
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from hyperseg._text import counted
from hyperseg.data.dataset import Dataset, manifest_hash
from hyperseg.data.errors import DataError
from hyperseg.evaluation.boundary import BoundaryIoU
from hyperseg.evaluation.confusion import Confusion
from hyperseg.evaluation.protocols import NoLabelledPixelError
from hyperseg.evaluation.results import Evaluation, scored

_FLUSH = 64  # images whose own counts are read from the device at a time

Value = TypeVar("Value")


def process() -> tuple[int, int]:
    """Return the number of this process in the default group and their number; 0 and 1 without a group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


class Totals:
    """Counts over the images of a data set, and the scores of each image.

    Args:
        dataset: whose images are scored.
        device: where labels and predictions are compared.
        ratio: of the boundary IoU, see :class:`BoundaryIoU`; None: it is not computed.

    Attributes:
        errors: index and message of each image that could not be scored.
    """

    def __init__(self, dataset: Dataset, device: torch.device, ratio: float | None) -> None:
        self.dataset = dataset
        classes, ignored = len(dataset.label_set), dataset.label_set.ignore_index
        self.confusion = Confusion(classes, ignored, device)
        self.boundary = None if ratio is None else BoundaryIoU(classes, ignored, device, ratio)
        self.images: list[tuple[int, dict[str, Any]]] = []
        self.errors: list[tuple[int, str]] = []
        self._waiting: list[tuple[int, Tensor]] = []

    def add(self, index: int, labels: np.ndarray, predictions: Tensor) -> None:
        """Add an image: its index in the data set, labels (uint8 [H, W]) and predictions (the same, on the device)."""
        on_device = torch.from_numpy(labels).to(predictions.device, non_blocking=True)
        table = self.confusion.add(on_device, predictions)[: self.confusion.classes]
        if self.boundary is not None:
            self.boundary.add(on_device, predictions)
        own = torch.stack([table.diagonal(), table.sum(1), table[:, :-1].sum(0)])
        self._waiting.append((index, own))
        if len(self._waiting) >= _FLUSH:
            self._flush()

    def _flush(self) -> None:
        if not self._waiting:
            return
        counts = torch.stack([own for _, own in self._waiting]).cpu().numpy()
        for (index, _), (right, labelled, predicted) in zip(self._waiting, counts, strict=True):
            self.images.append((index, _image_scores(self.dataset.items[index].name, right, labelled, predicted)))
        self._waiting.clear()

    def gather(self) -> None:
        """Combine the totals of all processes; each then has all of them."""
        self._flush()
        self.confusion.all_reduce()
        if self.boundary is not None:
            self.boundary.all_reduce()
        self.images = _gathered(self.images)
        self.errors = _gathered(self.errors)

    def result(self, root: str | os.PathLike[str] | None, settings: dict[str, Any]) -> Evaluation:
        """Return the scores of all images. Raises NoLabelledPixelError, or DataError if no image could be read."""
        dataset, table = self.dataset, self.dataset.label_set
        errors = [message for _, message in self.errors]
        place = f"{dataset.name} {dataset.split}"
        if errors and not self.images:
            raise DataError(f"none of {counted(len(dataset), 'image')} of {place} could be scored")
        try:
            protocols = scored(*self.confusion.counts())
        except NoLabelledPixelError:
            raise NoLabelledPixelError(
                f"there is no labelled pixel in {counted(len(dataset), 'image')} of {place}, so there is "
                "nothing to score; give a split whose labels are published"
            ) from None
        confusion, other = self.confusion.counts()
        return Evaluation(
            data={
                "name": dataset.name,
                "split": dataset.split,
                "form": dataset.form,
                "root": None if root is None else os.fspath(root),
                "images": len(dataset),
                "manifest_hash": _manifest_hash(dataset),
            },
            classes=[{"name": n, "color": list(c)} for n, c in zip(table.classes, table.colors, strict=True)],
            ignore_index=table.ignore_index,
            settings=settings,
            confusion=confusion.tolist(),
            other_predictions=other.tolist(),
            protocols=protocols,
            boundary_iou=_boundary_document(self.boundary),
            images=[scores for _, scores in self.images],
            errors=errors,
        )


def _gathered(own: list[tuple[int, Value]]) -> list[tuple[int, Value]]:
    """Return the numbered values of all processes in order."""
    _, world = process()
    parts = [own]
    if world > 1:
        parts = [[] for _ in range(world)]
        dist.all_gather_object(parts, own)
    return sorted((pair for part in parts for pair in part), key=lambda pair: pair[0])


def _image_scores(name: str, right: np.ndarray, labelled: np.ndarray, predicted: np.ndarray) -> dict[str, Any]:
    """Return the scores of an image: its classes that are labelled or predicted count, as in protocol standard."""
    union = labelled + predicted - right
    ious = right[union > 0] / union[union > 0]
    total = int(labelled.sum())
    return {
        "name": name,
        "miou": float(ious.mean()) if total else None,
        "pixel_accuracy": int(right.sum()) / total if total else None,
        "labelled_pixels": total,
    }


def _manifest_hash(dataset: Dataset) -> str | None:
    try:
        return manifest_hash(dataset.manifest())
    except DataError:  # an image is missing: an error already, unless predictions were scored, which need none
        return None


def _boundary_document(boundary: BoundaryIoU | None) -> dict[str, Any] | None:
    if boundary is None:
        return None
    per_class = boundary.per_class()
    present = [value for value in per_class if value is not None]
    return {
        "miou": sum(present) / len(present) if present else None,
        "per_class": per_class,
        "ratio": boundary.ratio,
        "distances": dict(sorted(boundary.distances.items())),
    }
