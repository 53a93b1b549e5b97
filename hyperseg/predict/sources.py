"""Sources yield frames. `ImageSource` reads image files; a video or a camera is a class of its own."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from hyperseg.images.errors import SourceError
from hyperseg.images.reading import read_image
from hyperseg.predict.finding import listed
from hyperseg.predict.names import unique_names


@dataclass(frozen=True)
class Frame:
    """An image to segment.

    name: the name of its outputs, without a suffix; unique within the source.
    image: uint8 [H, W, 3], RGB, upright.
    path: the file that it was read from, if any.
    """

    name: str
    image: np.ndarray
    path: Path | None = None


class Source(Protocol):
    """Any iterable of frames. A length (`len`), if it has one, is used to report progress.

    If one frame cannot be read, the iterator raises SourceError, and goes on with the next frame if it can.
    """

    def __iter__(self) -> Iterator[Frame]: ...


class ImageSource:
    """Image files. A thread reads the next file while the caller works on the current one.

    Args:
        paths: the files, see `find_images`.
        on_error: called with the SourceError of each file that cannot be read, which is left out. None: the error is
            raised, and the same iterator then goes on with the next file, as `Predictor.run` does.

    Attributes:
        names: of the frames, see `unique_names`.

    Raises:
        TypeError: `paths` is a single path.
    """

    def __init__(
        self, paths: Sequence[str | os.PathLike[str]], on_error: Callable[[SourceError], None] | None = None
    ) -> None:
        self.paths = [Path(path) for path in listed(paths)]
        self.names = unique_names(self.paths)
        self.on_error = on_error

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[Frame]:
        frames = map(_frame, self._read_ahead())  # not a generator, which an exception would end for good
        return frames if self.on_error is None else _without_errors(frames, self.on_error)

    def _read_ahead(self) -> "Iterator[_Reading]":
        files = zip(self.names, self.paths, strict=True)
        with ThreadPoolExecutor(max_workers=1) as reader:
            readings = ((name, path, reader.submit(read_image, path)) for name, path in files)
            current = next(readings, None)
            while current is not None:
                following = next(readings, None)
                yield current
                current = following


_Reading = tuple[str, Path, Future[np.ndarray]]


def _frame(reading: _Reading) -> Frame:
    name, path, image = reading
    return Frame(name, image.result(), path)


def _without_errors(frames: Iterator[Frame], on_error: Callable[[SourceError], None]) -> Iterator[Frame]:
    while True:
        frame = None
        try:
            if (frame := next(frames, None)) is None:
                return
        except SourceError as error:
            on_error(error)
        if frame is not None:
            yield frame
