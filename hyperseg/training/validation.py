"""Validation during a run: the mIoU of the network on a data set, which a signal may interrupt."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hyperseg._processes import Processes
from hyperseg.data.dataset import Dataset
from hyperseg.evaluation import Confusion, NoLabelledPixelError, standard
from hyperseg.evaluation.inference import Inference, NetworkLabeller
from hyperseg.evaluation.reading import read_ahead
from hyperseg.models import HyperSeg
from hyperseg.training.config import ValidationConfig


@dataclass(frozen=True)
class Picture:
    """An image with its labels and the network's predictions, uint8 [H, W, 3] and [H, W] each."""

    name: str
    image: np.ndarray
    labels: np.ndarray
    predictions: np.ndarray


@dataclass(frozen=True)
class Validation:
    """Scores by the protocol "standard", None without a labelled pixel, and some pictures of process 0."""

    scores: dict[str, Any]
    pictures: list[Picture]

    @property
    def miou(self) -> float | None:
        """Mean IoU over the classes that occur."""
        return self.scores["miou"]


def inference(config: ValidationConfig, device: torch.device) -> Inference:
    """Return how images are predicted: by the network itself, in float32."""
    return Inference(size=config.size, resize=config.resize, engine=False, device=device, batch=config.batch)


def evenly_spaced(dataset: Dataset, images: int | None) -> Dataset:
    """Return so many images of a data set, or all."""
    if images is None or images >= len(dataset):
        return dataset
    return dataset.subset(round(i * (len(dataset) - 1) / max(images - 1, 1)) for i in range(images))


def validate(
    network: HyperSeg,
    dataset: Dataset,
    config: ValidationConfig,
    processes: Processes,
    device: torch.device,
    stop: Callable[[], bool],
) -> Validation | None:
    """Score the network on all images of a data set, each by one process.

    Args:
        network: it is copied, not changed.
        stop: asked before each batch of images whether to give up.

    Returns:
        The scores, or None if any process gave up: the others finish their part first.

    Raises:
        DataError: an image cannot be read.
    """
    labeller = NetworkLabeller(network, inference(config, device))
    confusion = Confusion(len(dataset.label_set), dataset.label_set.ignore_index, device)
    own = range(processes.rank, len(dataset), processes.world)
    pictured = set(_pictured(own, config.pictures)) if processes.first else set()
    pictures: list[Picture] = []
    stopped = False

    def load(index: int) -> tuple[int, np.ndarray, np.ndarray, Any]:
        image, labels = dataset.sample(index)
        return index, image, labels, labeller.prepare(dataset.items[index], image, image.shape[:2])

    waiting: list[tuple[int, np.ndarray, np.ndarray, Any]] = []
    for place, (_, loaded) in enumerate(read_ahead(own, load, ahead=2 + config.batch)):
        if isinstance(loaded, Exception):
            raise loaded
        waiting.append(loaded)
        if len(waiting) < config.batch and place < len(own) - 1:
            continue
        if stopped := stop():
            break
        found = labeller.labels([each[3] for each in waiting])
        for (index, image, labels, _), predictions in zip(waiting, found, strict=True):
            confusion.add(torch.from_numpy(np.array(labels)).to(device), predictions)
            if index in pictured:
                pictures.append(Picture(dataset.items[index].name, image, labels, predictions.cpu().numpy()))
        waiting = []
    if processes.totals(stopped)[0]:
        return None
    processes.total(confusion.table)
    try:
        scores = standard(*confusion.counts()).document()
    except NoLabelledPixelError:
        scores = {"miou": None, "per_class": None, "pixel_accuracy": None}
    return Validation(scores, pictures)


def _pictured(own: Sequence[int], count: int) -> list[int]:
    return [own[round(i * (len(own) - 1) / max(count - 1, 1))] for i in range(min(count, len(own)))]
