"""Loader for small data sets: all images are on the device as uint8, and are resized and cropped there.

Samples are those of `Loader`, with equal labels. Images are resampled with Pillow's bicubic coefficients, as two matrix
products in float32 where Pillow computes in integers: few values differ, by 2 of 255 at most.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from hyperseg.data.dataset import Dataset
from hyperseg.data.pipeline.geometry import Span, Window, window
from hyperseg.data.pipeline.loader import Batch, check_labels, finish
from hyperseg.data.pipeline.photometry import Photometry
from hyperseg.data.pipeline.recipes import Augmentation
from hyperseg.data.pipeline.samples import Sample, Sampler, check_batch
from hyperseg.data.pipeline.sources import Channels, HostBatch, colors, flips

MOST_BYTES = 2_000_000_000


class DeviceLoader:
    """Augmented batches of a training run, from images in the memory of the device.

    Args:
        dataset: images with labels; all are read now.
        augmentation: of every sample, without rotation.
        batch_size, mean, std, seed, order, rank, world_size, device, dtype: as for `Loader`.
        most_bytes: largest size of the decoded images and labels.
        progress: called with the numbers of images that are read and of all.

    Raises:
        DataError: an image cannot be read, or has no labels.
        ValueError: the data set is too large, the augmentation rotates, or another argument is out of range.
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
        device: torch.device | str = "cuda",
        dtype: torch.dtype = torch.float32,
        most_bytes: int = MOST_BYTES,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        check_labels(dataset)
        check_batch(rank, world_size, batch_size)
        if augmentation.rotation:
            raise ValueError("images on a device are not rotated; use Loader, or an augmentation without rotation")
        self.device = torch.device(device)
        self.sampler = Sampler(len(dataset), seed, order)
        self._augmentation, self._ignored = augmentation, dataset.label_set.ignore_index
        self._share = rank, world_size, batch_size
        self._photometry = Photometry(mean, std, dtype)
        self._names = [str(item.image) for item in dataset.items]
        self._data = _read(dataset, self.device, most_bytes, progress)

    def run(self, first_step: int = 0, steps: int | None = None) -> Iterator[Batch]:
        """Yield this process's batches of `steps` steps from `first_step`; without `steps`, without end."""
        for step, numbers in enumerate(self.sampler.batches(first_step, steps, *self._share), first_step):
            samples = [self.sampler.sample(number) for number in numbers]
            yield finish(step, self._batch(samples), self._photometry)

    def _batch(self, samples: list[Sample]) -> HostBatch:
        jitter, size = self._augmentation.jitter, (len(samples), *self._augmentation.size)
        images = torch.zeros((*size, 3), dtype=torch.uint8, device=self.device)
        labels = torch.full(size, self._ignored, dtype=torch.uint8, device=self.device)
        inside = torch.zeros_like(labels) if jitter is not None and jitter.before_padding else None
        for position, sample in enumerate(samples):
            image, classes = self._data[sample.image]
            place = window((classes.shape[0], classes.shape[1]), self._augmentation, sample.draws)
            target = (position, place.rows.targets, place.columns.targets)
            images[target] = resize_image(image, place)
            labels[target] = resize_labels(classes, place)
            if inside is not None:
                inside[target] = 1
        flip = flips(samples, self._augmentation)
        flip = None if flip is None else flip.to(self.device, non_blocking=True)
        names = [self._names[sample.image] for sample in samples]
        return HostBatch(images, labels, names, flip, inside, *colors(samples, jitter))


def _read(
    dataset: Dataset, device: torch.device, most: int, progress: Callable[[int, int], None]
) -> list[tuple[Tensor, Tensor]]:
    """Return all images and labels on the device."""
    data: list[tuple[Tensor, Tensor]] = []
    total = 0
    with ThreadPoolExecutor() as pool:
        try:
            for pair in pool.map(dataset.sample, range(len(dataset))):
                total += sum(array.nbytes for array in pair)
                if total > most:
                    raise ValueError(
                        f"the first {len(data) + 1} of {len(dataset)} images have {total / 1e9:.1f} GB, but up to "
                        f"{most / 1e9:g} GB are held on a device; use Loader"
                    )
                image, labels = (torch.tensor(array).to(device) for array in pair)
                data.append((image, labels))
                progress(len(data), len(dataset))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return data


def resize_labels(labels: Tensor, place: Window) -> Tensor:
    """Return the window of the resized labels, as `geometry.resize_labels` does."""
    if tuple(labels.shape) == place.resized:
        return labels[place.rows.sources, place.columns.sources]
    rows, columns = (
        (2 * torch.arange(span.source, span.source + span.length, device=labels.device) + 1) * length // (2 * resized)
        for span, length, resized in zip(place[1:], labels.shape, place.resized, strict=True)
    )
    return labels[rows[:, None], columns]


def resize_image(image: Tensor, place: Window) -> Tensor:
    """Return the window of the resized image, uint8 [h, w, 3], about as `geometry.resize_image` does (bicubic)."""
    if tuple(image.shape[:2]) == place.resized:
        return image[place.rows.sources, place.columns.sources]
    top, bottom, rows = _coefficients(image.shape[0], place.resized[0], place.rows, image.device)
    left, right, columns = _coefficients(image.shape[1], place.resized[1], place.columns, image.device)
    pixels = image[top:bottom, left:right].to(torch.float32).transpose(1, 2)  # [source rows, 3, source columns]
    wide = _to_levels(pixels @ columns.T)  # horizontally first, and rounded in between, as Pillow
    return _to_levels(torch.tensordot(rows, wide, 1)).transpose(1, 2).to(torch.uint8)


def _to_levels(values: Tensor) -> Tensor:
    return values.add_(0.5).floor_().clamp_(0, 255)


def _coefficients(length: int, resized: int, span: Span, device: torch.device) -> tuple[int, int, Tensor]:
    """Return the source pixels, `first` to `last`, that a span depends on, and their weights [span, last - first]."""
    factor = length / resized
    stretch = max(factor, 1.0)
    support = 2 * stretch
    first = max(0, int(span.source * factor - support))
    last = min(length, int((span.source + span.length) * factor + support) + 1)
    centers = (torch.arange(span.length, device=device, dtype=torch.float64)[:, None] + (span.source + 0.5)) * factor
    pixels = torch.arange(first, last, device=device, dtype=torch.float64)
    begin, end = (centers - support + 0.5).floor(), (centers + support + 0.5).floor()
    weights = _cubic((pixels + 0.5 - centers).div_(stretch).abs_())
    weights = torch.where((pixels >= begin) & (pixels < end), weights, 0.0)
    return first, last, (weights / weights.sum(1, keepdim=True)).to(torch.float32)


def _cubic(x: Tensor) -> Tensor:
    """Return Pillow's bicubic kernel (a = -0.5) at distances x >= 0."""
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
