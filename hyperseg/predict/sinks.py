"""Sinks write predictions: label PNGs and overlays. A video writer or a window is a class with the same method."""

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image, PngImagePlugin

from hyperseg._files import atomic_write, printable
from hyperseg.data.labels import LabelSet, colorize, palette
from hyperseg.predict.errors import OutputError, SinkError, brief
from hyperseg.predict.legend import legend_strip
from hyperseg.predict.names import LABELS, MARK, OVERLAY
from hyperseg.predict.result import ClassShare, Prediction, check_image, check_labels
from hyperseg.predict.sources import Frame

# Errors of the operating system after which no other output can be written either.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class Sink(Protocol):
    """Anything with `write`, which returns the file written. It returns None if there is no file of this frame alone.

    It raises OutputError if an output of this frame cannot be written, SinkError if no output can be written any more.
    Whoever opens a sink that needs closing closes it.
    """

    def write(self, prediction: Prediction) -> Path | None: ...


class LabelSink:
    """Writes FOLDER/NAME_labels.png: a palette PNG whose pixel values are class indices, in the label set's colours."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = _folder(folder)

    def path(self, name: str) -> Path:
        """Return the file for a frame of this name."""
        return self.folder / f"{name}{LABELS}.png"

    def write(self, prediction: Prediction) -> Path:
        frame = prediction.frame
        return _write(label_image(prediction.labels, prediction.label_set), self.path(frame.name), frame)


class OverlaySink:
    """Writes FOLDER/NAME_overlay.png or .jpg: the image blended with the class colours, with an optional legend below.

    alpha: opacity of the colours, 0 (image only) to 1 (colours only).
    Raises ValueError if alpha or kind is out of range.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        alpha: float = 0.6,
        legend: bool = False,
        kind: Literal["png", "jpg"] = "png",
    ) -> None:
        _check_alpha(alpha)
        if kind not in ("png", "jpg"):
            raise ValueError(f"kind is {kind!r}; give 'png' or 'jpg'")
        self.folder, self.alpha, self.legend, self.kind = _folder(folder), alpha, legend, kind

    def path(self, name: str) -> Path:
        """Return the file for a frame of this name."""
        return self.folder / f"{name}{OVERLAY}.{self.kind}"

    def write(self, prediction: Prediction) -> Path:
        table, frame = prediction.label_set, prediction.frame
        blended = overlay(frame.image, prediction.labels, table, self.alpha)
        if self.legend:
            blended = with_legend(blended, prediction.shares, table)
        return _write(Image.fromarray(blended), self.path(frame.name), frame)


def _folder(folder: str | os.PathLike[str]) -> Path:
    if not os.fspath(folder):
        raise ValueError("the name of the output folder is empty; give a folder, or '.' for the current one")
    return Path(folder)


def _write(image: Image.Image, path: Path, frame: Frame) -> Path:
    """Write an output. Raises SinkError if the next one would fail too, else OutputError."""
    try:
        return save_image(image, path)
    except (OSError, ValueError) as error:
        source, reason = printable(frame.path or frame.name), getattr(error, "strerror", None) or brief(error)
        message = f"{source} is not done: {printable(path)} could not be written ({reason})"
        if getattr(error, "errno", None) in _FULL or not os.access(path.parent, os.W_OK | os.X_OK):
            raise SinkError(message) from error
        raise OutputError(message) from error


def label_image(labels: np.ndarray, table: LabelSet) -> Image.Image:
    """Return labels (uint8 [H, W]) as a Pillow image in mode "P" with the palette of `table`. Raises ValueError."""
    check_labels(labels)
    image = Image.fromarray(np.ascontiguousarray(labels))
    image.putpalette(palette(table))  # turns "L" into "P" and keeps the indices
    return image


def overlay(image: np.ndarray, labels: np.ndarray, table: LabelSet, alpha: float = 0.6) -> np.ndarray:
    """Blend an image (uint8 [H, W, 3]) with the colours of its labels (uint8 [H, W]); returns uint8 [H, W, 3].

    alpha: opacity of the colours, 0 (image only) to 1 (colours only). Ignored and background pixels keep the image.
    Raises ValueError if the sizes differ, an array is of another form, or alpha is out of range.
    """
    check_image(image)
    check_labels(labels)
    if image.shape[:2] != labels.shape:
        raise ValueError(f"the image is {image.shape[:2]} but its labels are {labels.shape}; their sizes must match")
    _check_alpha(alpha)
    opacity = np.full(256, alpha, np.float32)
    opacity[table.ignore_index] = 0
    if table.background is not None:
        opacity[table.background] = 0
    weight = opacity[labels][:, :, None]
    mixed = image * (1 - weight) + colorize(labels, table) * weight
    return np.rint(mixed).astype(np.uint8)


def _check_alpha(alpha: float) -> None:
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}; give 0 (image only) to 1 (colours only)")


def with_legend(image: np.ndarray, shares: Sequence[ClassShare], table: LabelSet) -> np.ndarray:
    """Add a strip below an image (uint8 [H, W, 3]) that names the classes: uint8 [H + h, max(W, w), 3]."""
    strip = legend_strip(shares, table, width=image.shape[1], scale=min(image.shape[:2]))
    width = max(image.shape[1], strip.shape[1])
    canvas = np.full((image.shape[0] + strip.shape[0], width, 3), 255, np.uint8)
    canvas[: image.shape[0], : image.shape[1]] = image
    canvas[image.shape[0] :, : strip.shape[1]] = strip
    return canvas


def save_image(image: Image.Image, path: str | os.PathLike[str]) -> Path:
    """Write an image atomically: JPEG for .jpg and .jpeg, PNG for .png. Return the path.

    Raises:
        OSError: the file cannot be written.
        ValueError: the suffix is another, or a side is too long for a JPEG, which has at most 65500 pixels.
    """
    path, form = Path(path), _FORMATS.get(Path(path).suffix.lower())
    if form is None:
        raise ValueError(f"{printable(path)} does not end in .png, .jpg or .jpeg; give such a name")
    if form == "JPEG" and max(image.size) > 65500:
        raise ValueError(f"{image.width}x{image.height} pixels are too many for a JPEG; write a PNG")
    options: dict[str, Any] = {"quality": 95, "subsampling": 0, "comment": MARK}
    if form == "PNG":
        mark = PngImagePlugin.PngInfo()
        mark.add_text("Software", MARK)
        options = {"compress_level": 6, "pnginfo": mark}
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        image.save(file, format=form, **options)
    return path


_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
