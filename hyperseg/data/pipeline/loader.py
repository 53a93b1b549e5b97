"""Loaders: batches on the device, from files or a cache, made in this process or in workers.

    with Loader(dataset, augmentation, batch_size=16, mean=mean, std=std, seed=1, workers=8, device="cuda") as loader:
        for batch in loader.run(first_step=step):
            loss = train_step(batch.images, batch.labels)

A run that was interrupted goes on at any step with the same samples, also with another number of workers or processes.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from hyperseg.data.dataset import Dataset
from hyperseg.data.errors import DataError
from hyperseg.data.pipeline.cache import CachedDataset
from hyperseg.data.pipeline.jitter import JitterParameters
from hyperseg.data.pipeline.photometry import Photometry, mirror
from hyperseg.data.pipeline.recipes import Augmentation, EvalResize
from hyperseg.data.pipeline.samples import Sampler, check_batch
from hyperseg.data.pipeline.sources import (
    Channels,
    EvaluationSource,
    Failure,
    HostBatch,
    OfficialSource,
    Source,
    TrainingSource,
)
from hyperseg.data.pipeline.waiting import WaitMeter
from hyperseg.data.pipeline.workers import Workers

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batch:
    """One batch of this process, on the device.

    step: of the run; of a validation, the number of the batch.
    images: [N, 3, H, W], normalised, in channels-last memory.
    labels: uint8 [N, H, W] (int64 with official transforms): classes and the ignore index.
    names: of the image files, for messages.
    """

    step: int
    images: Tensor
    labels: Tensor
    names: tuple[str, ...]


class _Copied(NamedTuple):
    """A batch whose tensors are on the device, after the event."""

    batch: HostBatch
    event: torch.cuda.Event | None


class _Loader:
    """What training and validation share: workers, transfer, photometry, and the measured waiting time."""

    def __init__(
        self,
        source: Source,
        photometry: Photometry,
        device: torch.device | str,
        workers: int,
        start_method: str | None,
    ) -> None:
        self.device = torch.device(device)
        self._photometry = photometry
        self._stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self._waiting = WaitMeter(workers, cached=isinstance(source.dataset, CachedDataset))
        self._workers = Workers(source, workers, self._stream is not None, start_method)

    def __enter__(self) -> "_Loader":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers. The next run starts new ones."""
        self._workers.close()

    @property
    def wait_share(self) -> float:
        """Share of the time since the first batch of a run that the consumer waited for data, 0 to 1."""
        return self._waiting.share

    def _batches(self, first: int, numbers: Iterator[range]) -> Iterator[Batch]:
        """Yield the batches of these numbers. On a GPU the next one is copied while the consumer works with one."""
        self._waiting.restart()
        made = self._workers.run(numbers)
        ahead = self._stream is not None
        with self._workers.reporting():
            following = self._fetch(made)
            while (copied := following) is not None:
                following = self._fetch(made) if ahead else None
                yield self._finished(first, copied)
                first += 1
                following = following if ahead else self._fetch(made)

    def _fetch(self, made: Iterator[HostBatch | Failure]) -> _Copied | None:
        """Wait for the next batch and begin to copy it; None at the end. Raises DataError."""
        self._waiting.ask()
        batch = next(made, None)
        self._waiting.receive()
        if isinstance(batch, Failure):
            self.close()
            if batch.trace:
                _log.error("%s", batch.trace)
            raise DataError(batch.message)
        return None if batch is None else self._copy(batch)

    def _copy(self, batch: HostBatch) -> _Copied:
        if self._stream is None:
            return _Copied(batch, None)
        with torch.cuda.stream(self._stream):
            on_device = {
                name: tensor.to(self.device, non_blocking=True)
                for name in ("images", "labels", "flip", "inside")
                if (tensor := getattr(batch, name)) is not None
            }
            event = torch.cuda.Event()
            event.record()
        return _Copied(batch._replace(**on_device), event)

    def _finished(self, step: int, copied: _Copied) -> Batch:
        batch, event = copied
        if event is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(event)
            for tensor in (batch.images, batch.labels, batch.flip, batch.inside):
                if tensor is not None:
                    tensor.record_stream(current)  # else its memory could be reused by the next copy
        return finish(step, batch, self._photometry)


def finish(step: int, batch: HostBatch, photometry: Photometry) -> Batch:
    """Compute what is left to do on the device."""
    images, labels = batch.images, batch.labels
    if images.dtype == torch.uint8:
        jitter = None
        if batch.factors is not None and batch.order is not None:
            jitter = JitterParameters(batch.factors, batch.order)
        images = photometry(images, batch.flip, jitter, batch.inside)
        labels = labels if batch.flip is None else mirror(labels, batch.flip)
    else:  # official transforms have done everything
        images = images.to(photometry.dtype, memory_format=torch.channels_last)
    return Batch(step, images, labels, tuple(batch.names))


class Loader(_Loader):
    """Augmented batches of a training run.

    Args:
        dataset: images with labels.
        augmentation: of every sample; those of the published networks are in `recipes.py`.
        batch_size: of all processes together. The samples of a step depend on it, the seed and the order only.
        mean, std: of RGB in [0, 1], of the network.
        seed, order: of :class:`Sampler`.
        rank, world_size: of this process, and the number of processes.
        workers: processes that make batches; 0: they are made in this one, when they are asked for.
        device: where the batches are.
        dtype: of the images: float32, or the type of autocast.
        official: use the transforms of the official code, to reproduce its results; they are slow.
        start_method: of the workers; None: "forkserver" or "spawn" for CUDA, else Python's default.

    Raises:
        DataError: the data set has no labels.
        ValueError: the batch cannot be divided among the processes, or another argument is out of range.
    """

    def __init__(
        self,
        dataset: Dataset,
        augmentation: Augmentation,
        *,
        batch_size: int,
        mean: Channels,
        std: Channels,
        seed: int = 0,
        order: str = "replacement",
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        official: bool = False,
        start_method: str | None = None,
    ) -> None:
        check_labels(dataset)
        check_batch(rank, world_size, batch_size)
        self.sampler = Sampler(len(dataset), seed, order)
        self._share = rank, world_size, batch_size
        source: Source = TrainingSource(dataset, self.sampler, augmentation)
        if official:
            source = OfficialSource(dataset, self.sampler, augmentation, mean, std)
        super().__init__(source, Photometry(mean, std, dtype), device, workers, start_method)

    def run(self, first_step: int = 0, steps: int | None = None) -> Iterator[Batch]:
        """Yield this process's batches of `steps` steps from `first_step`; without `steps`, without end.

        Only one run at a time. Raises DataError, which names the file, for one that cannot be read; the workers have
        ended then.
        """
        yield from self._batches(first_step, self.sampler.batches(first_step, steps, *self._share))


class ValidationLoader(_Loader):
    """Batches of a whole data set: each image once, in order, divided among the processes.

    Args:
        dataset: images with labels.
        resize: how images are prepared; None: not at all. Images of different sizes need a batch size of 1.
        batch_size: of this process; its last batch may be smaller.
        mean, std, rank, world_size, workers, device, dtype, start_method: as for :class:`Loader`. Processes can have
            different numbers of batches.

    Raises:
        DataError: the data set has no labels.
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        dataset: Dataset,
        resize: EvalResize | None,
        *,
        mean: Channels,
        std: Channels,
        batch_size: int = 1,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        start_method: str | None = None,
    ) -> None:
        check_labels(dataset)
        check_batch(rank, world_size, batch_size * world_size)
        own = range(rank, len(dataset), world_size)
        self._own = [own[begin : begin + batch_size] for begin in range(0, len(own), batch_size)]
        super().__init__(EvaluationSource(dataset, resize), Photometry(mean, std, dtype), device, workers, start_method)

    def __len__(self) -> int:
        return len(self._own)

    def __iter__(self) -> Iterator[Batch]:
        """Yield this process's batches. Raises DataError, which names the file, for one that cannot be read."""
        yield from self._batches(0, iter(self._own))


def check_labels(dataset: Dataset) -> None:
    """Raise DataError if an image has no labels."""
    for item in dataset.items:
        if item.label is None:
            raise DataError(
                f"{item.image} has no labels: the split {dataset.split!r} of {dataset.name} cannot be used for "
                "training or validation; give a split with labels"
            )
