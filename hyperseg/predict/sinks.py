"""Sinks write predictions to files, one of each frame: label PNGs, pictures, JSON. A video has the same method."""

import contextlib
import errno
import json
import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from PIL import Image

from hyperseg._files import atomic_write, printable
from hyperseg._text import brief
from hyperseg.data.drawing import label_image
from hyperseg.images.writing import marked, save_image
from hyperseg.predict import names
from hyperseg.predict.errors import OutputError, SinkError
from hyperseg.predict.frames import Frame
from hyperseg.predict.pictures import Overlay, SideBySide, class_colors
from hyperseg.predict.result import Prediction

# Errors of the operating system after which no other output can be written either.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class Sink(Protocol):
    """Anything with `write`, which returns the file written. It returns None if there is no file of this frame alone.

    It raises OutputError if an output of this frame cannot be written, SinkError if no output can be written any more.
    Whoever opens a sink that needs closing closes it.
    """

    def write(self, prediction: Prediction) -> Path | None:
        """Write a prediction. Raises OutputError, SinkError."""
        ...


class FileSink:
    """Writes FOLDER/NAME<ending>, one file for each frame.

    Args:
        folder: is created if it is missing.
        note: text in each file's metadata after the project's mark, by which `is_done` recognises it.

    Raises:
        ValueError: the name of the folder is empty.
    """

    ending: str

    def __init__(self, folder: str | os.PathLike[str], note: str = "") -> None:
        if not os.fspath(folder):
            raise ValueError("the name of the output folder is empty; give a folder, or '.' for the current one")
        self.folder, self.note = Path(folder), note

    def path(self, name: str) -> Path:
        """Return the file for a frame of this name."""
        return self.folder / f"{name}{self.ending}"

    def is_done(self, name: str) -> bool:
        """Return whether the file for this name exists and was written with the same note."""
        return names.has_mark(self.path(name), self.note)

    def write(self, prediction: Prediction) -> Path:
        """Write the file of a frame. Raises OutputError, SinkError."""
        path = self.path(prediction.frame.name)
        try:
            self._save(prediction, path)
        except (OSError, ValueError) as error:
            raise _failure(prediction.frame, path, error) from error
        return path

    def _save(self, prediction: Prediction, path: Path) -> None:
        raise NotImplementedError


class LabelSink(FileSink):
    """Writes FOLDER/NAME_labels.png: a palette PNG whose pixel values are class indices, in the label set's colours."""

    ending = f"{names.LABELS}.png"

    def _save(self, prediction: Prediction, path: Path) -> None:
        save_image(label_image(prediction.labels, prediction.label_set), path, self.note)


class IndexSink(FileSink):
    """Writes FOLDER/NAME_index.png: a grey PNG whose pixel values are class indices."""

    ending = f"{names.INDEX}.png"

    def _save(self, prediction: Prediction, path: Path) -> None:
        save_image(Image.fromarray(np.ascontiguousarray(prediction.labels)), path, self.note)


class PictureSink(FileSink):
    """Writes FOLDER/NAME<ending>: a picture of each prediction, as PNG or JPEG by the ending."""

    def __init__(
        self,
        folder: str | os.PathLike[str],
        draw: Callable[[Prediction], np.ndarray],
        ending: str,
        note: str = "",
    ) -> None:
        super().__init__(folder, note)
        self.draw, self.ending = draw, ending

    def _save(self, prediction: Prediction, path: Path) -> None:
        save_image(Image.fromarray(self.draw(prediction)), path, self.note)


class OverlaySink(PictureSink):
    """Writes FOLDER/NAME_overlay.png or .jpg: the image blended with the class colours, with an optional legend below.

    alpha: opacity of the colours, 0 (image only) to 1 (colours only).
    Raises ValueError if alpha or kind is out of range.
    """

    stem = names.OVERLAY

    def __init__(
        self,
        folder: str | os.PathLike[str],
        alpha: float = 0.6,
        legend: bool = False,
        kind: str = "png",
        note: str = "",
    ) -> None:
        overlay = Overlay(alpha, "present" if legend else None)
        super().__init__(folder, self._picture(overlay), _with_kind(self.stem, kind), note)

    def _picture(self, overlay: Overlay) -> Callable[[Prediction], np.ndarray]:
        return overlay


class SideSink(OverlaySink):
    """Writes FOLDER/NAME_side.png or .jpg: the image beside its overlay. Arguments as those of `OverlaySink`."""

    stem = names.SIDE

    def _picture(self, overlay: Overlay) -> Callable[[Prediction], np.ndarray]:
        return SideBySide(overlay)


class ColorSink(PictureSink):
    """Writes FOLDER/NAME_colors.png: the labels as an RGB image in the colours of the classes."""

    def __init__(self, folder: str | os.PathLike[str], note: str = "") -> None:
        super().__init__(folder, class_colors, f"{names.COLORS}.png", note)


class JsonSink(FileSink):
    """Writes FOLDER/NAME.json: the size of the image, and the share of each class that is present."""

    ending = ".json"

    def _save(self, prediction: Prediction, path: Path) -> None:
        document = {"software": marked(self.note), **document_of(prediction)}
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(document) + "\n", encoding="ascii")


class JsonLinesSink:
    """Writes one file with a JSON document per frame and line; it appears when the sink is closed, also after an error.

    Args:
        file: the file.
        note: text for the first line, after the project's mark.
    """

    def __init__(self, file: str | os.PathLike[str], note: str = "") -> None:
        self.file, self.note = Path(file), note
        self._exit = contextlib.ExitStack()
        self._stream: Any = None

    def path(self, name: str) -> Path:
        """Return the file, whatever the frame is called."""
        return self.file

    def is_done(self, name: str) -> bool:
        """Return whether the file exists and was written with the same note."""
        return names.has_mark(self.file, self.note)

    def write(self, prediction: Prediction) -> None:
        """Add a line. Raises SinkError."""
        try:
            first = {}
            if self._stream is None:
                with contextlib.ExitStack() as stack:
                    temporary = stack.enter_context(atomic_write(self.file))
                    self._stream = stack.enter_context(open(temporary, "w", encoding="ascii"))
                    self._exit = stack.pop_all()
                first = {"software": marked(self.note)}
            self._stream.write(json.dumps({**first, **document_of(prediction)}) + "\n")
        except OSError as error:
            raise SinkError(f"{printable(self.file)} could not be written ({brief(error)})") from error

    def close(self) -> Path | None:
        """Complete the file and return its path; None if no frame was written. Raises SinkError."""
        if self._stream is None:
            return None
        self._stream = None
        try:
            self._exit.close()
        except OSError as error:
            raise SinkError(f"{printable(self.file)} could not be written ({brief(error)})") from error
        return self.file


class RawLabelSink:
    """Writes the labels of each frame to a binary stream: H x W bytes of class indices, row by row."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream

    def write(self, prediction: Prediction) -> None:
        """Write a frame. Raises SinkError, for example if the reader of a pipe has closed it."""
        try:
            self.stream.write(prediction.labels.tobytes())
            self.stream.flush()
        except OSError as error:
            raise SinkError(f"standard output cannot be written to ({brief(error)})") from error


def document_of(prediction: Prediction) -> dict[str, Any]:
    """Return what JSON says of a prediction: name, size, number and time in a video, shares of the classes."""
    frame, (height, width) = prediction.frame, prediction.labels.shape
    document: dict[str, Any] = {"name": frame.name, "height": height, "width": width}
    if frame.index is not None:
        document |= {"frame": frame.index, "time": _seconds(frame.time)}
    return {**document, "classes": [vars(share) for share in prediction.shares]}


def _seconds(time: Fraction | None) -> float | None:
    return None if time is None else round(float(time), 6)


def _with_kind(ending: str, kind: str) -> str:
    if kind not in ("png", "jpg"):
        raise ValueError(f"kind is {kind!r}; give 'png' or 'jpg'")
    return f"{ending}.{kind}"


def _failure(frame: Frame, path: Path, error: Exception) -> OutputError | SinkError:
    """Return SinkError if the next output would fail too, else OutputError."""
    source, reason = printable(frame.path or frame.name), getattr(error, "strerror", None) or brief(error)
    message = f"{source} is not done: {printable(path)} could not be written ({reason})"
    if not path.parent.is_dir():  # the reason is about the folder
        message = f"{source} is not done: the folder {printable(path.parent)} could not be created ({reason})"
    full = getattr(error, "errno", None) in _FULL or not os.access(path.parent, os.W_OK | os.X_OK)
    return (SinkError if full else OutputError)(message)
