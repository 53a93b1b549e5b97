"""Data of a run: its data sets, what their labels contain, and batches on the device."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hyperseg._processes import Processes
from hyperseg.data.dataset import Dataset, manifest_hash
from hyperseg.data.errors import DataError
from hyperseg.data.pipeline.cache import CachedDataset
from hyperseg.data.pipeline.loader import Loader
from hyperseg.data.pipeline.recipes import Augmentation, ColorJitter
from hyperseg.data.registry import WITHOUT_FILES, open_dataset
from hyperseg.models import HyperSegConfig
from hyperseg.training.config import AugmentationConfig, ConfigError, DataConfig, TrainingConfig
from hyperseg.training.losses import frequency_weights

_REPORTED = 3  # files in a message


@dataclass(frozen=True)
class Sets:
    """The data sets of a run; val and test are None if the configuration has none."""

    train: Dataset
    val: Dataset | None
    test: Dataset | None


def open_sets(config: DataConfig) -> Sets:
    """Open the splits of the configuration.

    Raises:
        ConfigError: there is no root, or no such data set or option. DataError: its files are not as published.
    """
    if config.root is None and config.name not in WITHOUT_FILES:
        raise ConfigError("data.root is missing; give the folder of the data set with --root DIR")
    train = _open(config, "+".join(config.train))
    val, test = (None if split is None else _open(config, split) for split in (config.val, config.test))
    for other in (val, test):
        if other is not None and other.label_set.classes != train.label_set.classes:
            raise ConfigError(f"data: the splits {train.split} and {other.split} have different classes")
    return Sets(train, val, test)


def _open(config: DataConfig, split: str) -> Dataset:
    try:
        dataset = open_dataset(config.name, config.root or "-", split, **config.options)
    except DataError:
        raise
    except ValueError as error:
        raise ConfigError(f"data: {error}") from None
    folder = None if config.cache is None else Path(config.cache) / split
    return CachedDataset(folder, dataset) if folder is not None and folder.is_dir() else dataset


@dataclass(frozen=True)
class Statistics:
    """What the labels of a data set contain.

    Attributes:
        pixels: of each class.
        of_images: of each class, the labelled pixels of the images that contain it.
        unlabelled: images without any labelled pixel.
    """

    pixels: list[int]
    of_images: list[int]
    unlabelled: int

    def class_weights(self, wanted: str | tuple[float, ...]) -> torch.Tensor | None:
        """Return what ``loss.class_weights`` means for these labels.

        Raises:
            ConfigError: it lists another number of classes.
        """
        if wanted == "none":
            return None
        if not isinstance(wanted, str):
            if len(wanted) != len(self.pixels):
                raise ConfigError(
                    f"loss.class_weights has {len(wanted)} numbers, but the data set has {len(self.pixels)} classes"
                )
            return torch.tensor(wanted)
        pixels, of_images = torch.tensor(self.pixels), torch.tensor(self.of_images)
        return frequency_weights(pixels, of_images, root=wanted == "sqrt_median_frequency")


def label_statistics(dataset: Dataset, workers: int) -> Statistics:
    """Read all labels once: count the pixels of each class, and check that every label is a class or ignored.

    Raises:
        DataError: labels cannot be read, contain something else, or are all ignored.
    """
    classes, ignored = len(dataset.label_set), dataset.label_set.ignore_index

    def count(index: int) -> np.ndarray | str:
        item = dataset.items[index]
        try:
            counts = np.bincount(dataset.labels(index).ravel(), minlength=256)
        except DataError as error:
            return str(error)
        stray = [value for value in np.flatnonzero(counts).tolist() if value >= classes and value != ignored]
        if stray:
            return f"{item.label} has labels {stray[:8]}; classes are 0 to {classes - 1}, and {ignored} is ignored"
        return counts[:classes]

    with ThreadPoolExecutor(max(1, workers)) as pool:
        found = list(pool.map(count, range(len(dataset))))
    if errors := [each for each in found if isinstance(each, str)]:
        more = f"; and {len(errors) - _REPORTED} more" if len(errors) > _REPORTED else ""
        raise DataError(f"{'; '.join(errors[:_REPORTED])}{more}")
    counts = np.stack([each for each in found if not isinstance(each, str)]).astype(np.int64)
    labelled = counts.sum(1)
    if not labelled.any():
        raise DataError(
            f"no labelled pixel in {len(dataset)} masks of {dataset.name} {dataset.split}: every pixel is ignored; "
            "check the values of the masks, or the class file"
        )
    of_images = ((counts > 0) * labelled[:, None]).sum(0)
    return Statistics(counts.sum(0).tolist(), of_images.tolist(), int((labelled == 0).sum()))


def describe(sets: Sets, statistics: Statistics) -> dict[str, Any]:
    """Return what a run records about its data."""

    def one(dataset: Dataset | None) -> dict[str, Any] | None:
        if dataset is None:
            return None
        found = manifest_hash(dataset.manifest())
        return {"split": dataset.split, "form": dataset.form, "images": len(dataset), "manifest_hash": found}

    return {
        "name": sets.train.name,
        "classes": list(sets.train.label_set.classes),
        "train": one(sets.train),
        "val": one(sets.val),
        "test": one(sets.test),
        "labels": vars(statistics),
    }


def check_same_data(saved: Mapping[str, Any], sets: Sets) -> list[str]:
    """Check that a run goes on with the images that it began with; return a message if files have changed.

    Raises:
        DataError: there are more or fewer images or other classes, so its samples would be others.
    """
    train, before = sets.train, saved["train"]
    if len(train) != before["images"] or list(train.label_set.classes) != saved["classes"]:
        raise DataError(
            f"the run began with {before['images']} images and {len(saved['classes'])} classes, and now {train.name} "
            f"{train.split} has {len(train)} and {len(train.label_set)}; restore the data, or begin another run"
        )
    if manifest_hash(train.manifest()) != before["manifest_hash"]:
        return ["files of the data set, or their times, have changed since the run began"]
    return []


def check_batch(config: TrainingConfig, processes: Processes) -> None:
    """Raise ConfigError if the processes and the parts of a step cannot divide the batch evenly."""
    share = processes.world * config.speed.accumulate
    if config.batch % share:
        raise ConfigError(
            f"batch is {config.batch}, which {processes.world} processes with {config.speed.accumulate} parts each "
            f"(speed.accumulate) cannot divide evenly; give a multiple of {share}"
        )


def build_loader(
    config: TrainingConfig,
    dataset: Dataset,
    network: HyperSegConfig,
    processes: Processes,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Loader:
    """Return the loader of training batches."""
    return Loader(
        dataset,
        augmentation(config.augmentation),
        batch_size=config.batch,
        mean=network.mean,
        std=network.std,
        seed=config.run.seed,
        order=config.data.order,
        rank=processes.rank,
        world_size=processes.world,
        workers=config.data.workers,
        device=device,
        dtype=dtype,
        official=config.augmentation.official,
    )


def augmentation(config: AugmentationConfig) -> Augmentation:
    """Return the pipeline's declaration of an augmentation."""
    corner = config.place == "corner"
    jitter = ColorJitter(*config.jitter, before_padding=corner) if any(config.jitter) else None
    scale = config.scale if config.scale_probability and config.scale != (1.0, 1.0) else None
    return Augmentation(
        config.crop,
        scale=scale,
        scale_probability=config.scale_probability,
        crop=not corner,
        rotation=config.rotation,
        flip=config.flip,
        jitter=jitter,
    )
