"""What a user names as inputs, sorted into images, videos, cameras, streams and a pipe."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hyperseg._transfer import Progress
from hyperseg.images.errors import SourceError
from hyperseg.predict.addresses import download, is_address, is_stream
from hyperseg.predict.finding import find_media, listed

PIPE = "-"


@dataclass
class Inputs:
    """Image and video files, numbers of cameras, addresses of streams, and whether frames come from standard input."""

    images: list[Path] = field(default_factory=list)
    videos: list[Path] = field(default_factory=list)
    cameras: list[int] = field(default_factory=list)
    streams: list[str] = field(default_factory=list)
    pipe: bool = False

    def __len__(self) -> int:
        return len(self.images) + len(self.videos) + len(self.cameras) + len(self.streams) + self.pipe


def sort_inputs(
    inputs: Sequence[str | os.PathLike[str]],
    downloads: Path,
    on_error: Callable[[SourceError], None],
    on_skip: Callable[[str], None],
    on_progress: Callable[[Progress], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Inputs:
    """Sort inputs by what they are; download files that have an http address.

    Args:
        inputs: files, folders, patterns, addresses, numbers of cameras ("0", unless there is such a file), and "-".
        downloads: a folder for downloaded files.
        on_error: called for each input that there is nothing for, see `find_images`.
        on_skip: see `find_images`.
        on_progress: called while a file is downloaded.
        on_note: see `find_media`.
    """
    result, names = Inputs(), []
    for given in listed(inputs):
        if given == PIPE:
            result.pipe = True
        elif is_address(given):
            try:
                if is_stream(given):
                    result.streams.append(given)
                else:
                    names.append(os.fspath(download(given, downloads, on_progress)))
            except SourceError as error:
                on_error(error)
        elif given.isascii() and given.isdigit() and len(given) <= 3 and not os.path.exists(given):
            result.cameras.append(int(given))
        else:
            names.append(given)
    result.images, result.videos = find_media(names, on_error, on_skip, on_note)
    return result
