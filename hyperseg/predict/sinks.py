"""Sinks write predictions: label PNGs and overlays. A video writer or a window is a class with the same method."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from PIL import Image

from hyperseg._files import atomic_write
from hyperseg.data.labels import LabelSet, colorize, palette
from hyperseg.predict.legend import legend_strip
from hyperseg.predict.result import ClassShare, Prediction


class SinkError(OSError):
    """An output could not be written. The message names the frame and the reason."""


class Sink(Protocol):
    """Anything with `write`, which returns the file written. It returns None if there is no file of this frame alone.

    Whoever opens a sink that needs closing closes it.
    """

    def write(self, prediction: Prediction) -> Path | None: ...


class LabelSink:
    """Writes FOLDER/NAME_labels.png: a palette PNG whose pixel values are class indices, in the label set's colours."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def path(self, name: str) -> Path:
        """Return the file for a frame of this name."""
        return self.folder / f"{name}_labels.png"

    def write(self, prediction: Prediction) -> Path:
        return save_image(label_image(prediction.labels, prediction.label_set), self.path(prediction.frame.name))


class OverlaySink:
    """Writes FOLDER/NAME_overlay.png or .jpg: the image blended with the class colours, with an optional legend below.

    alpha: opacity of the colours, 0 (image only) to 1 (colours only).
    """

    def __init__(
        self, folder: str | Path, alpha: float = 0.6, legend: bool = False, kind: Literal["png", "jpg"] = "png"
    ) -> None:
        self.folder, self.alpha, self.legend, self.kind = Path(folder), alpha, legend, kind

    def path(self, name: str) -> Path:
        """Return the file for a frame of this name."""
        return self.folder / f"{name}_overlay.{self.kind}"

    def write(self, prediction: Prediction) -> Path:
        table = prediction.label_set
        blended = overlay(prediction.frame.image, prediction.labels, table, self.alpha)
        if self.legend:
            blended = with_legend(blended, prediction.shares, table)
        return save_image(Image.fromarray(blended), self.path(prediction.frame.name))


def label_image(labels: np.ndarray, table: LabelSet) -> Image.Image:
    """Return labels (uint8 [H, W]) as a Pillow image in mode "P" with the palette of `table`."""
    image = Image.fromarray(np.ascontiguousarray(labels, dtype=np.uint8))
    image.putpalette(palette(table))  # turns "L" into "P" and keeps the indices
    return image


def overlay(image: np.ndarray, labels: np.ndarray, table: LabelSet, alpha: float = 0.6) -> np.ndarray:
    """Blend an image (uint8 [H, W, 3]) with the colours of its labels (uint8 [H, W]); returns uint8 [H, W, 3].

    alpha: opacity of the colours, 0 (image only) to 1 (colours only). Ignored and background pixels keep the image.
    Raises ValueError if the sizes differ or alpha is out of range.
    """
    if image.shape[:2] != labels.shape:
        raise ValueError(f"the image is {image.shape[:2]} but its labels are {labels.shape}; their sizes must match")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}; give 0 (image only) to 1 (colours only)")
    opacity = np.full(256, alpha, np.float32)
    opacity[table.ignore_index] = 0
    if table.background is not None:
        opacity[table.background] = 0
    weight = opacity[labels][:, :, None]
    mixed = image * (1 - weight) + colorize(labels, table) * weight
    return np.rint(mixed).astype(np.uint8)


def with_legend(image: np.ndarray, shares: Sequence[ClassShare], table: LabelSet) -> np.ndarray:
    """Add a strip below an image (uint8 [H, W, 3]) that names the classes: uint8 [H + h, max(W, w), 3]."""
    strip = legend_strip(shares, table, width=image.shape[1], scale=min(image.shape[:2]))
    width = max(image.shape[1], strip.shape[1])
    canvas = np.full((image.shape[0] + strip.shape[0], width, 3), 255, np.uint8)
    canvas[: image.shape[0], : image.shape[1]] = image
    canvas[image.shape[0] :, : strip.shape[1]] = strip
    return canvas


def save_image(image: Image.Image, path: Path) -> Path:
    """Write an image atomically: JPEG if the suffix is ".jpg", else PNG. Return the path. Raises OSError."""
    options = {"quality": 95, "subsampling": 0} if path.suffix == ".jpg" else {"compress_level": 6}
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        image.save(file, format="JPEG" if path.suffix == ".jpg" else "PNG", **options)
    return path
