"""The transforms of the official code, for reproduction: bit-equal to them with the same seeds, and as slow.

Everything is Pillow on the CPU, in the original order, whole images resized before they are cropped. Each decision is
drawn from the generator that the original draws it from, in its order: Python's `random` for resize, flip and rotation,
PyTorch's for crops and colours. Corners of rotated labels are class 0, as there.
"""

import random
from dataclasses import dataclass

import numpy as np
import torch
import torchvision.transforms.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from hyperseg.data.pipeline.recipes import Augmentation, ColorJitter, EvalResize, Size
from hyperseg.data.pipeline.samples import Draws

Pair = tuple[Image.Image, Image.Image]  # image and labels
_IGNORED = 255  # the original's label of padding, whatever the data set ignores
_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass
class Generators:
    """The two generators that the original draws from: `random` and PyTorch's on the CPU, here not the global ones."""

    python: random.Random
    torch: torch.Generator

    @classmethod
    def seeded(cls, python: int, torch_seed: int) -> "Generators":
        """Return the state of ``random.seed(python)`` and ``torch.manual_seed(torch_seed)``."""
        return cls(random.Random(python), torch.Generator().manual_seed(torch_seed))

    @classmethod
    def of(cls, draws: Draws) -> "Generators":
        """Return the generators of one sample of a run."""
        return cls.seeded(int(draws.python_seed * 2**32), int(draws.torch_seed * 2**32))


def transform(
    image: np.ndarray,
    labels: np.ndarray,
    augmentation: Augmentation,
    generators: Generators,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> tuple[Tensor, Tensor]:
    """Return the training sample of the original: float32 [3, h, w] and int64 [h, w].

    Args:
        image, labels: uint8 [H, W, 3] and [H, W].
        augmentation: with crop=True in the order of the CamVid and Cityscapes recipes, else in that of the VOC recipe.
        generators: they advance as the original's do.
        mean, std: of RGB in [0, 1].
    """
    pair = Image.fromarray(np.ascontiguousarray(image)), Image.fromarray(np.ascontiguousarray(labels))
    if augmentation.crop:
        pair = _random_resize(pair, augmentation, generators.python)
        pair = _random_crop(pair, augmentation.size, generators.torch)
        pair = _random_flip(pair, augmentation.flip, generators.python)
        pair = _jitter(pair[0], augmentation.jitter, generators.torch), pair[1]
    else:
        pair = _random_flip(pair, augmentation.flip, generators.python)
        pair = _jitter(pair[0], augmentation.jitter, generators.torch), pair[1]
        pair = _random_resize(pair, augmentation, generators.python)
        pair = _random_rotation(pair, augmentation.rotation, generators.python)
        pair = _pad_to(pair, augmentation.size)
    return to_tensors(pair, mean, std)


def transform_for_evaluation(
    image: np.ndarray,
    labels: np.ndarray,
    resize: EvalResize,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> tuple[Tensor, Tensor]:
    """Return the validation sample of the original: float32 [3, h, w] and int64 [h, w]."""
    picture, classes = Image.fromarray(np.ascontiguousarray(image)), Image.fromarray(np.ascontiguousarray(labels))
    if resize.filter == "pad":
        padded, padded_labels = _pad_to((picture, classes), resize.size)
        return to_tensors((padded, padded_labels if resize.labels else classes), mean, std)
    size = resize.size[::-1]
    resized = picture.resize(size, _RESAMPLING[resize.filter])
    return to_tensors(
        (resized, classes.resize(size, Image.Resampling.NEAREST) if resize.labels else classes), mean, std
    )


def to_tensors(pair: Pair, mean: tuple[float, float, float], std: tuple[float, float, float]) -> tuple[Tensor, Tensor]:
    """Return a normalised float image [3, H, W] and int64 labels [H, W]."""
    pixels = F.normalize(F.to_tensor(pair[0]), list(mean), list(std), inplace=True)
    return pixels, torch.from_numpy(np.asarray(pair[1]).astype(np.int64))


def _random_resize(pair: Pair, augmentation: Augmentation, generator: random.Random) -> Pair:
    if augmentation.scale is None or generator.random() >= augmentation.scale_probability:
        return pair
    low, high = augmentation.scale
    scale = generator.random() * (high - low) + low
    size = round(pair[0].width * scale), round(pair[0].height * scale)
    if size == pair[0].size:
        return pair
    return pair[0].resize(size, Image.Resampling.BICUBIC), pair[1].resize(size, Image.Resampling.NEAREST)


def _random_crop(pair: Pair, size: Size, generator: torch.Generator) -> Pair:
    height, width = size
    missing = max(0, width - pair[0].width), max(0, height - pair[0].height)
    if any(missing):  # all that is missing at both sides
        pair = ImageOps.expand(pair[0], missing, 0), ImageOps.expand(pair[1], missing, _IGNORED)
    if pair[0].size == (width, height):  # without drawing, as torchvision does
        return pair
    top = int(torch.randint(0, pair[0].height - height + 1, (1,), generator=generator))
    left = int(torch.randint(0, pair[0].width - width + 1, (1,), generator=generator))
    box = (left, top, left + width, top + height)
    return pair[0].crop(box), pair[1].crop(box)


def _random_flip(pair: Pair, probability: float, generator: random.Random) -> Pair:
    return (ImageOps.mirror(pair[0]), ImageOps.mirror(pair[1])) if generator.random() < probability else pair


def _random_rotation(pair: Pair, degrees: float, generator: random.Random) -> Pair:
    if not degrees:
        return pair
    angle = generator.uniform(-degrees, degrees)
    return pair[0].rotate(angle, Image.Resampling.BICUBIC), pair[1].rotate(angle, Image.Resampling.NEAREST)


def _pad_to(pair: Pair, size: Size) -> Pair:
    border = (0, 0, max(0, size[1] - pair[0].width), max(0, size[0] - pair[0].height))
    return ImageOps.expand(pair[0], border, 0), ImageOps.expand(pair[1], border, _IGNORED)


def _jitter(image: Image.Image, jitter: ColorJitter | None, generator: torch.Generator) -> Image.Image:
    """Apply torchvision's ColorJitter, whose own class draws from the global generator only."""
    if jitter is None:
        return image
    order = torch.randperm(4, generator=generator).tolist()
    ranges = [(max(0.0, 1 - v), 1 + v) for v in (jitter.brightness, jitter.contrast, jitter.saturation)]
    ranges.append((-jitter.hue, jitter.hue))
    changes = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    values = []
    for (low, high), center in zip(ranges, (1.0, 1.0, 1.0, 0.0), strict=True):
        none = low == high == center  # ColorJitter draws nothing for a value of 0
        values.append(None if none else float(torch.empty(1).uniform_(low, high, generator=generator)))
    for kind in order:
        if (value := values[kind]) is not None:
            image = changes[kind](image, value)
    return image
