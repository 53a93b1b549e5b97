"""Where predictions go. A sink has `write(prediction) -> Path`; here: label PNGs and overlays.

A video writer is another class with the same method, and `close()` to finish its file.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from PIL import Image

from hyperseg._files import atomic_write
from hyperseg.data.labels import LabelSet, colorize, palette
from hyperseg.predict.legend import legend_strip
from hyperseg.predict.pipeline import ClassShare, Prediction


class Sink(Protocol):
    def write(self, prediction: Prediction) -> Path: ...


class LabelSink:
    """FOLDER/NAME_labels.png: the labels themselves (a pixel is the class index), shown in the data set's colours."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def path(self, name: str) -> Path:
        return self.folder / f"{name}_labels.png"

    def write(self, prediction: Prediction) -> Path:
        return save_image(label_image(prediction.labels, prediction.label_set), self.path(prediction.frame.name))


class OverlaySink:
    """FOLDER/NAME_overlay.png (or .jpg): the photo with the classes laid over it, and on request a legend below."""

    def __init__(
        self, folder: str | Path, alpha: float = 0.6, legend: bool = False, kind: Literal["png", "jpg"] = "png"
    ) -> None:
        self.folder, self.alpha, self.legend, self.kind = Path(folder), alpha, legend, kind

    def path(self, name: str) -> Path:
        return self.folder / f"{name}_overlay.{self.kind}"

    def write(self, prediction: Prediction) -> Path:
        table = prediction.label_set
        picture = overlay(prediction.frame.image, prediction.labels, table, self.alpha)
        if self.legend:
            picture = with_legend(picture, prediction.shares, table)
        return save_image(Image.fromarray(picture), self.path(prediction.frame.name))


def label_image(labels: np.ndarray, table: LabelSet) -> Image.Image:
    """Labels uint8 [H, W] as an image in mode "P" with the palette of `table`."""
    image = Image.fromarray(np.ascontiguousarray(labels, dtype=np.uint8))
    image.putpalette(palette(table))  # turns "L" into "P" and keeps the indices
    return image


def overlay(image: np.ndarray, labels: np.ndarray, table: LabelSet, alpha: float = 0.6) -> np.ndarray:
    """The photo uint8 [H, W, 3] with the colours of its labels uint8 [H, W] laid over it: uint8 [H, W, 3].

    alpha: opacity of the colours, 0 (photo only) to 1. Ignored and background pixels keep the photo.
    Raises ValueError when the sizes differ or alpha is out of range.
    """
    if image.shape[:2] != labels.shape:
        raise ValueError(f"the image is {image.shape[:2]} but its labels are {labels.shape}; they must be of one size")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}; give 0 (photo only) to 1 (colours only)")
    opacity = np.full(256, alpha, np.float32)
    opacity[table.ignore_index] = 0
    if table.background is not None:
        opacity[table.background] = 0
    weight = opacity[labels][:, :, None]
    mixed = image * (1 - weight) + colorize(labels, table) * weight
    return np.rint(mixed).astype(np.uint8)


def with_legend(picture: np.ndarray, shares: Sequence[ClassShare], table: LabelSet) -> np.ndarray:
    """The picture uint8 [H, W, 3] with a strip below that names the classes present: uint8 [H + h, max(W, w), 3]."""
    strip = legend_strip(shares, table, width=picture.shape[1], scale=min(picture.shape[:2]))
    width = max(picture.shape[1], strip.shape[1])
    canvas = np.full((picture.shape[0] + strip.shape[0], width, 3), 255, np.uint8)
    canvas[: picture.shape[0], : picture.shape[1]] = picture
    canvas[picture.shape[0] :, : strip.shape[1]] = strip
    return canvas


def save_image(image: Image.Image, path: Path) -> Path:
    """Write an image atomically, as JPEG if the suffix is ``.jpg``, else as PNG. Returns the path. Raises OSError."""
    options = {"quality": 95, "subsampling": 0} if path.suffix == ".jpg" else {"compress_level": 6}
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        image.save(file, format="JPEG" if path.suffix == ".jpg" else "PNG", **options)
    return path
