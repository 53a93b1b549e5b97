"""Evaluation of a data set: labels and predictions are compared image by image, and nothing per pixel is kept.

Under torchrun each process takes every W-th image, so each image counts exactly once, and all processes return the same
result.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from hyperseg.data.dataset import Dataset, Item
from hyperseg.data.errors import DataError
from hyperseg.evaluation.protocols import NoLabelledPixelError
from hyperseg.evaluation.reading import read_ahead
from hyperseg.evaluation.results import Evaluation
from hyperseg.evaluation.submission import PredictionWriter
from hyperseg.evaluation.totals import Totals, process
from hyperseg.runtime import EngineError
from hyperseg.runtime.device import is_out_of_memory


class Labeller(Protocol):
    """What makes the predictions: :class:`NetworkLabeller` or :class:`PredictionFolder`."""

    reads_images: bool
    batch: int
    device: torch.device

    def prepare(self, item: Item, image: np.ndarray | None, size: tuple[int, int]) -> Any:
        """Prepare an image in a reader thread; None if not `reads_images`. Raises DataError."""
        ...

    def labels(self, images: Sequence[Any]) -> list[Tensor]:
        """Return the labels of prepared images, uint8 [H, W] on the device."""
        ...


@dataclass(frozen=True)
class _Loaded:
    index: int
    labels: np.ndarray | None
    prepared: Any


def evaluate(
    dataset: Dataset,
    labeller: Labeller,
    settings: dict[str, Any] | None = None,
    root: str | os.PathLike[str] | None = None,
    boundary_ratio: float | None = 0.02,
    workers: int = 2,
    writers: Sequence[PredictionWriter] = (),
    on_error: Callable[[str], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Score predictions on a data set.

    Args:
        dataset: with labels, unless predictions are only written.
        labeller: makes or reads the predictions.
        settings: recorded in the result, one value per key.
        root: of the data set, recorded in the result.
        boundary_ratio: width of the bands of the boundary IoU as a part of the diagonal; None: it is not computed.
        workers: threads that read ahead.
        writers: get the predictions of each image.
        on_error: called with a message for each image that cannot be scored; the others still are.
        progress: called after each image of this process with the number done and the number in all.

    Raises:
        NoLabelledPixelError: there is nothing to score. Predictions are written before.
        DataError: no image could be read.
        OSError: predictions cannot be written.
        EngineError, BackendError: the network cannot run with these settings.
    """
    if not writers and all(item.label is None for item in dataset.items):
        raise NoLabelledPixelError(
            f"the split {dataset.split!r} of {dataset.name} has no labels, so there is nothing to score; "
            "predictions can only be written for it"
        )
    rank, world = process()
    totals = Totals(dataset, labeller.device, boundary_ratio)
    indices = range(rank, len(dataset), world)
    for done, found in enumerate(_predicted(dataset, labeller, indices, workers), start=1):
        index, labels, predictions = found
        item = dataset.items[index]
        if not isinstance(predictions, Exception):
            for writer in writers:
                writer.write(item, predictions.cpu().numpy())
            if labels is not None:
                totals.add(index, labels, predictions)
            elif not writers:
                predictions = DataError(f"{item.image} has no labels")
        if isinstance(predictions, Exception):
            totals.errors.append((index, str(predictions)))
            if on_error is not None:
                on_error(str(predictions))
        if progress is not None:
            progress(done, len(indices))
    totals.gather()
    return totals.result(root, settings or {})


def predict_items(
    dataset: Dataset, labeller: Labeller, names: Sequence[str]
) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """Yield name, image, labels and predictions of some images of a data set, for pictures. Raises DataError."""
    places = {item.name: index for index, item in enumerate(dataset.items)}
    for name in names:
        *_, predictions = next(_predicted(dataset, labeller, [places[name]], workers=1))
        if isinstance(predictions, Exception):
            raise DataError(str(predictions))
        image, labels = dataset.sample(places[name])
        yield name, image, labels, predictions.cpu().numpy()


def _predicted(
    dataset: Dataset, labeller: Labeller, indices: Sequence[int], workers: int
) -> Iterator[tuple[int, np.ndarray | None, Tensor | Exception]]:
    """Yield index, labels and predictions of images; instead of predictions the error of an image."""

    def load(index: int) -> _Loaded:
        return _load(dataset, labeller, index)

    batch: list[_Loaded] = []
    last = len(indices) - 1
    for place, (index, loaded) in enumerate(read_ahead(indices, load, workers, ahead=workers + labeller.batch)):
        if isinstance(loaded, Exception):
            if not isinstance(loaded, DataError | MemoryError):
                raise loaded
            yield index, None, loaded
        else:
            batch.append(loaded)
        if batch and (len(batch) == labeller.batch or place == last):
            results = _labels_of(dataset, labeller, batch)
            yield from ((one.index, one.labels, found) for one, found in zip(batch, results, strict=True))
            batch = []


def _load(dataset: Dataset, labeller: Labeller, index: int) -> _Loaded:
    item = dataset.items[index]
    image = labels = None
    if item.label is None:
        image = dataset.image(index)
    elif labeller.reads_images:
        image, labels = dataset.sample(index)
    else:
        labels = dataset.labels(index)
    if labels is not None:
        _check_values(labels, dataset, item)
        labels = np.require(labels, requirements=["C", "W"])  # as PyTorch needs it
    height, width = (labels if image is None else image).shape[:2]  # type: ignore[union-attr]
    return _Loaded(index, labels, labeller.prepare(item, image if labeller.reads_images else None, (height, width)))


def _check_values(labels: np.ndarray, dataset: Dataset, item: Item) -> None:
    """Require classes and ignored pixels, so that the message can name the file. Raises DataError."""
    classes, ignored = len(dataset.label_set), dataset.label_set.ignore_index
    present = np.flatnonzero(np.bincount(labels.ravel(), minlength=256))
    stray = [int(value) for value in present if value >= classes and value != ignored]
    if stray:
        listed = ", ".join(map(str, stray[:8]))
        raise DataError(f"{item.label} has labels {listed}; classes are 0 to {classes - 1}, and {ignored} is ignored")


def _labels_of(dataset: Dataset, labeller: Labeller, batch: Sequence[_Loaded]) -> Sequence[Tensor | Exception]:
    try:
        return labeller.labels([each.prepared for each in batch])
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, EngineError) or not is_out_of_memory(error):
            raise
    # Out of the except block: the exception would keep the tensors in its traceback.
    together = f" in a batch of {len(batch)}" if len(batch) > 1 else ""
    return [
        MemoryError(f"{dataset.items[each.index].image} does not fit in memory{together}; give a smaller size or batch")
        for each in batch
    ]
