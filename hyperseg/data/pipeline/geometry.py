"""Geometry of images and labels, in uint8 on the CPU: resize, crop, rotation, padding.

Only pixels that stay are computed.

A resized pixel's label is that of the source pixel under its centre, in exact integers. Image pixels come from Pillow's
antialiased resampling of the window alone. Compared with resizing the whole image first, its coordinates are rounded
otherwise, which changes values near a rounding tie: few of them, by 2 of 255 at most.
"""

import math
from typing import NamedTuple

import numpy as np
from PIL import Image

from hyperseg.data.pipeline.recipes import Augmentation, EvalResize, Size
from hyperseg.data.pipeline.samples import Draws

_FILTERS = {"bilinear": (Image.Resampling.BILINEAR, 1.0), "bicubic": (Image.Resampling.BICUBIC, 2.0)}


class Span(NamedTuple):
    """Along one axis: `length` pixels from `source` in the resized image are at `target` in the result."""

    target: int
    source: int
    length: int

    @property
    def targets(self) -> slice:
        return slice(self.target, self.target + self.length)

    @property
    def sources(self) -> slice:
        return slice(self.source, self.source + self.length)


class Window(NamedTuple):
    """The size of the whole resized image, and which part of it is where in the result."""

    resized: Size
    rows: Span
    columns: Span


class SizeError(ValueError):
    """An image is too large for an augmentation that does not crop. The message goes on after the image's name."""


def window(size: Size, augmentation: Augmentation, draws: Draws) -> Window:
    """Return what is resized to which size and where it is in the result, not yet mirrored. Raises SizeError."""
    resized = size
    if augmentation.scale is not None and draws.resized < augmentation.scale_probability:
        low, high = augmentation.scale
        scale = low + draws.scale * (high - low)
        resized = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))  # half to even
    if augmentation.crop:
        rows = _cropped(resized[0], augmentation.size[0], draws.top)
        return Window(resized, rows, _cropped(resized[1], augmentation.size[1], draws.left))
    return _padded(resized, augmentation.size, flip=flipped(augmentation, draws))


def flipped(augmentation: Augmentation, draws: Draws) -> bool:
    """Return whether a sample is mirrored, which is done on the device, after everything else."""
    return draws.flip < augmentation.flip


def _cropped(length: int, target: int, draw: float) -> Span:
    """Return a random window. A shorter image is somewhere in it, as if padded at both sides by what is missing."""
    start = int(draw * (abs(length - target) + 1))
    return Span(target - length - start, 0, length) if length < target else Span(0, start, target)


def _padded(size: Size, target: Size, flip: bool = False) -> Window:
    """Return an image in the upper left corner; if it is to be mirrored, in the upper right one."""
    if size[0] > target[0] or size[1] > target[1]:
        raise SizeError(
            f"is {size[0]}x{size[1]} (height x width) after it was resized, but is to be padded to "
            f"{target[0]}x{target[1]}; set a larger size, a smaller scale or crop=True"
        )
    return Window(size, Span(0, 0, size[0]), Span(target[1] - size[1] if flip else 0, 0, size[1]))


def augment(
    image: np.ndarray,
    labels: np.ndarray,
    augmentation: Augmentation,
    draws: Draws,
    ignore_index: int,
    out: tuple[np.ndarray, np.ndarray, np.ndarray | None],
) -> None:
    """Write one augmented sample, not yet flipped, into arrays of the augmentation's size.

    Args:
        image, labels: uint8 [H, W, 3] and [H, W]. They are not changed and need not be writable.
        augmentation, draws: what is done, and the random numbers for it.
        ignore_index: label of padding.
        out: image uint8 [h, w, 3], labels uint8 [h, w], and, unless it is None, uint8 [h, w] that becomes 1 where the
            image is and 0 where there is padding.

    Raises:
        SizeError: the image is too large for an augmentation that does not crop.
    """
    place = window((labels.shape[0], labels.shape[1]), augmentation, draws)
    pixels = resize_image(image, place, "bicubic")
    classes = resize_labels(labels, place)
    inside = None if out[2] is None else np.ones_like(classes)
    if augmentation.rotation:
        angle = (2 * draws.angle - 1) * augmentation.rotation
        pixels = _rotate(pixels, angle, Image.Resampling.BICUBIC, 0)
        classes = _rotate(classes, angle, Image.Resampling.NEAREST, ignore_index)
        inside = None if inside is None else _rotate(inside, angle, Image.Resampling.NEAREST, 0)
    _fill(out[0], pixels, place, 0)
    _fill(out[1], classes, place, ignore_index)
    if out[2] is not None and inside is not None:
        _fill(out[2], inside, place, 0)


def for_evaluation(
    image: np.ndarray, labels: np.ndarray, resize: EvalResize, ignore_index: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return an image and its labels for validation. They can be the arguments themselves. Raises SizeError."""
    size: Size = labels.shape[0], labels.shape[1]
    if resize.filter == "pad":
        place = _padded(size, resize.size)
        padded = np.empty((*resize.size, 3), np.uint8), np.empty(resize.size, np.uint8)
        _fill(padded[0], image, place, 0)
        _fill(padded[1], labels, place, ignore_index)
        return padded if resize.labels else (padded[0], labels)
    place = Window(resize.size, Span(0, 0, resize.size[0]), Span(0, 0, resize.size[1]))
    return resize_image(image, place, resize.filter), resize_labels(labels, place) if resize.labels else labels


def resize_labels(labels: np.ndarray, place: Window) -> np.ndarray:
    """Return the window of the resized labels: each pixel's label is that of the source pixel under its centre."""
    rows = source_indices(labels.shape[0], place.resized[0], place.rows)
    columns = source_indices(labels.shape[1], place.resized[1], place.columns)
    if labels.shape == place.resized:
        return labels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    # Of the columns between first and last: rows of a memory map are read in one piece, and then gathered.
    return labels[rows, columns[0] : columns[-1] + 1].take(columns - columns[0], axis=1)


def source_indices(length: int, resized: int, span: Span) -> np.ndarray:
    """Return the source index under each pixel's centre: floor((2 i + 1) length / (2 resized)), in integers."""
    pixels = np.arange(span.source, span.source + span.length, dtype=np.int64)
    return (2 * pixels + 1) * length // (2 * resized)


def resize_image(image: np.ndarray, place: Window, filter: str) -> np.ndarray:
    """Return the window of the resized image."""
    height, width, (_, rows, columns) = image.shape[0], image.shape[1], place
    if (height, width) == place.resized:
        return image[rows.sources, columns.sources]
    method, support = _FILTERS[filter]
    top, bottom, first, last = _source_box(height, place.resized[0], rows, support)
    left, right, start, end = _source_box(width, place.resized[1], columns, support)
    part = Image.fromarray(np.ascontiguousarray(image[first:last, start:end]))
    # One axis at a time: in one call, Pillow's versions choose the order by the sizes of the part, and values that
    # overshoot 255 are cut off in between.
    part = part.resize((columns.length, part.height), method, box=(left - start, 0, right - start, part.height))
    part = part.resize((part.width, rows.length), method, box=(0, top - first, part.width, bottom - first))
    return np.asarray(part)


def _source_box(length: int, resized: int, span: Span, support: float) -> tuple[float, float, int, int]:
    """Return where a span begins and ends in the source, and the source pixels that it depends on."""
    factor = length / resized
    begin, end = span.source * factor, min((span.source + span.length) * factor, float(length))
    margin = support * max(factor, 1.0) + 1
    return begin, end, max(0, math.floor(begin - margin)), min(length, math.ceil(end + margin))


def _rotate(array: np.ndarray, angle: float, method: Image.Resampling, fill: int) -> np.ndarray:
    color = (fill,) * 3 if array.ndim == 3 else fill
    return np.asarray(Image.fromarray(np.ascontiguousarray(array)).rotate(angle, method, fillcolor=color))


def _fill(out: np.ndarray, content: np.ndarray, place: Window, value: int) -> None:
    """Write content to its place, and `value` around it."""
    rows, columns = place.rows.targets, place.columns.targets
    out[: rows.start] = value
    out[rows.stop :] = value
    out[rows, : columns.start] = value
    out[rows, columns.stop :] = value
    out[rows, columns] = content
