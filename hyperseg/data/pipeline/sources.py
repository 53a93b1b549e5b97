"""Batches as the workers of a loader make them: uint8 arrays of several images, in host memory."""

import traceback
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hyperseg.data.dataset import Dataset
from hyperseg.data.errors import DataError
from hyperseg.data.pipeline.geometry import SizeError, augment, flipped, for_evaluation
from hyperseg.data.pipeline.jitter import jitter_parameters
from hyperseg.data.pipeline.recipes import Augmentation, ColorJitter, EvalResize
from hyperseg.data.pipeline.samples import Sample, Sampler

Channels = tuple[float, float, float]


class HostBatch(NamedTuple):
    """A batch before photometry. A NamedTuple, whose tensors a DataLoader pins.

    images: uint8 [N, H, W, 3]; of official transforms the finished float32 [N, 3, H, W].
    labels: uint8 [N, H, W]; of official transforms int64.
    names: of the image files.
    flip: bool [N].
    inside: uint8 [N, H, W], 0 for padding whose colours must not change.
    factors, order: fields of `JitterParameters`.
    """

    images: Tensor
    labels: Tensor
    names: list[str]
    flip: Tensor | None = None
    inside: Tensor | None = None
    factors: Tensor | None = None
    order: Tensor | None = None


class Failure(NamedTuple):
    """Instead of a batch: the message about the file that cannot be used, and the trace of an unexpected error."""

    message: str
    trace: str = ""


class Source:
    """Makes batches from numbers: a data set as a DataLoader calls it in its workers. It can be pickled."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitems__(self, numbers: Sequence[int]) -> HostBatch | Failure:
        """Return the batch of these numbers. Raises nothing: an error would lose its type between processes."""
        names: list[str] = []
        try:
            return self.batch(numbers, names)
        except SizeError as error:
            return Failure(f"{names[-1]} {error}")
        except DataError as error:
            return Failure(str(error))
        except Exception as error:
            file = names[-1] if names else f"a batch of {len(numbers)} images"
            return Failure(f"{file} could not be loaded ({type(error).__name__}: {error})", traceback.format_exc())

    def batch(self, numbers: Sequence[int], names: list[str]) -> HostBatch:
        """Return a batch; `names` gets the name of each image before it is read."""
        raise NotImplementedError

    def read(self, index: int, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return an image and its labels, and add its name to `names`. Raises DataError."""
        names.append(str(self.dataset.items[index].image))
        return self.dataset.sample(index)


class TrainingSource(Source):
    """Augmented samples of a run, by their numbers.

    Args:
        dataset: images with labels.
        sampler: of a run with this data set.
        augmentation: of every sample.
    """

    def __init__(self, dataset: Dataset, sampler: Sampler, augmentation: Augmentation) -> None:
        super().__init__(dataset)
        self.sampler, self.augmentation = sampler, augmentation

    def batch(self, numbers: Sequence[int], names: list[str]) -> HostBatch:
        """Return samples by their numbers."""
        samples = [self.sampler.sample(number) for number in numbers]
        size, jitter = (len(samples), *self.augmentation.size), self.augmentation.jitter
        images, labels = torch.empty((*size, 3), dtype=torch.uint8), torch.empty(size, dtype=torch.uint8)
        inside = torch.empty_like(labels) if jitter is not None and jitter.before_padding else None
        for position, sample in enumerate(samples):
            mask = None if inside is None else inside[position].numpy()
            out = images[position].numpy(), labels[position].numpy(), mask
            pixels, classes = self.read(sample.image, names)
            augment(pixels, classes, self.augmentation, sample.draws, self.dataset.label_set.ignore_index, out)
        return HostBatch(images, labels, names, flips(samples, self.augmentation), inside, *colors(samples, jitter))


def flips(samples: Sequence[Sample], augmentation: Augmentation) -> Tensor | None:
    """Return which samples are mirrored, bool [N]; None if none ever is."""
    if not augmentation.flip:
        return None
    return torch.tensor([flipped(augmentation, sample.draws) for sample in samples])


def colors(samples: Sequence[Sample], jitter: ColorJitter | None) -> tuple[Tensor | None, Tensor | None]:
    """Return the factors and the order of the colour changes of samples."""
    return (None, None) if jitter is None else jitter_parameters(jitter, [sample.draws for sample in samples])


class OfficialSource(Source):
    """Samples of a run, transformed as by the official code; the generators of a sample are seeded by its number.

    Args:
        dataset, sampler, augmentation: as for :class:`TrainingSource`.
        mean, std: of RGB in [0, 1].
    """

    def __init__(
        self, dataset: Dataset, sampler: Sampler, augmentation: Augmentation, mean: Channels, std: Channels
    ) -> None:
        super().__init__(dataset)
        self.sampler, self.augmentation, self.mean, self.std = sampler, augmentation, mean, std

    def batch(self, numbers: Sequence[int], names: list[str]) -> HostBatch:
        """Return samples by their numbers."""
        from hyperseg.data.pipeline import official  # imports torchvision, which other workers do without

        images, labels = [], []
        for number in numbers:
            sample = self.sampler.sample(number)
            generators = official.Generators.of(sample.draws)
            pair = self.read(sample.image, names)
            image, classes = official.transform(*pair, self.augmentation, generators, self.mean, self.std)
            if image.shape[1:] != self.augmentation.size:
                width, height = image.shape[2], image.shape[1]
                raise SizeError(f"is {height}x{width} after its transforms, which do not crop; a batch has one size")
            images.append(image)
            labels.append(classes)
        return HostBatch(torch.stack(images), torch.stack(labels), names)


class EvaluationSource(Source):
    """Images for validation, by their index in the data set.

    Args:
        dataset: images with labels.
        resize: how they are prepared; None: not at all.
    """

    def __init__(self, dataset: Dataset, resize: EvalResize | None) -> None:
        super().__init__(dataset)
        self.resize = resize

    def batch(self, numbers: Sequence[int], names: list[str]) -> HostBatch:
        """Return images by their index."""
        pairs = []
        for index in numbers:
            image, labels = self.read(index, names)
            if self.resize is not None:
                image, labels = for_evaluation(image, labels, self.resize, self.dataset.label_set.ignore_index)
            pairs.append((image, labels))
            for array, first in zip(pairs[-1], pairs[0], strict=True):
                if array.shape != first.shape:
                    sizes = f"{array.shape[0]}x{array.shape[1]}, but {names[0]} {first.shape[0]}x{first.shape[1]}"
                    raise SizeError(f"is {sizes}; images of different sizes need a batch size of 1")
        stacked = [torch.from_numpy(np.stack(arrays)) for arrays in zip(*pairs, strict=True)]
        return HostBatch(stacked[0], stacked[1], names)
