"""Sinks write predictions: label PNGs and overlays. A video writer or a window is a class with the same method."""

import errno
import os
from pathlib import Path
from typing import Literal, Protocol

from PIL import Image

from hyperseg._files import printable
from hyperseg._text import brief
from hyperseg.data.drawing import check_alpha, label_image, overlay, with_legend
from hyperseg.images.writing import save_image
from hyperseg.predict.errors import OutputError, SinkError
from hyperseg.predict.names import LABELS, OVERLAY
from hyperseg.predict.result import Prediction
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
        check_alpha(alpha)
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
