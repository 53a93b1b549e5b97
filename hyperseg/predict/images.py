"""Image files as a source of frames."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from hyperseg.images.errors import SourceError
from hyperseg.images.reading import read_image
from hyperseg.predict.finding import listed
from hyperseg.predict.frames import Frame
from hyperseg.predict.names import unique_names


class ImageSource:
    """Image files.

    Args:
        paths: the files, see `find_images`.
        on_error: called with the SourceError of each file that cannot be read, which is left out. None: the error is
            raised, and the same iterator then goes on with the next file, as `Predictor.run` does.
        names: of the frames; None: `unique_names` of the files.

    Attributes:
        paths, names: of the files and their frames.

    Raises:
        ValueError: there is not one name for each file.
        TypeError: `paths` is a single path.
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str]],
        on_error: Callable[[SourceError], None] | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        self.paths = [Path(path) for path in listed(paths)]
        self.names = unique_names(self.paths) if names is None else list(names)
        if len(self.names) != len(self.paths):
            raise ValueError(f"there are {len(self.names)} names for {len(self.paths)} files; give one for each")
        self.on_error = on_error

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[Frame]:
        frames = map(_frame, self.names, self.paths)  # not a generator, which an exception would end for good
        return frames if self.on_error is None else _without_errors(frames, self.on_error)


def _frame(name: str, path: Path) -> Frame:
    return Frame(name, read_image(path), path)


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
