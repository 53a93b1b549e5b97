"""Image files for what a user names: files, folders and patterns."""

import glob
import logging
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from hyperseg._files import printable
from hyperseg.images import kinds
from hyperseg.images.errors import SourceError, unreadable
from hyperseg.predict.names import head, is_own_output

logger = logging.getLogger("hyperseg.predict")

_EXPECTED = "files ending in .jpg, .png, .tif and the other suffixes that Pillow reads were looked for"


def find_images(
    inputs: Sequence[str | os.PathLike[str]],
    on_error: Callable[[SourceError], None] | None = None,
    on_skip: Callable[[str], None] | None = None,
) -> list[Path]:
    """Return the image files for `inputs`: files as given, the images directly in a folder, the matches of a pattern.

    The images of a folder or pattern are sorted; a file named twice is listed once. Hidden files, files of other kinds
    and the outputs of an earlier run are left out of folders and patterns.

    Args:
        inputs: paths and patterns.
        on_error: called for each input without images: a missing file, a folder that may not be read, a folder or
            pattern without images. None: such an error is raised.
        on_skip: called with a message for each file of a folder or pattern that looks like an image but cannot be read,
            such as a raw photo. None: the message is logged as a warning.

    Raises:
        SourceError: see `on_error`.
        TypeError: `inputs` is a single path.
    """
    found: dict[str, Path] = {}
    for given in listed(inputs):
        paths: list[Path] = []
        try:
            paths = _expand(given, on_skip or logger.warning)
        except SourceError as error:
            if on_error is None:
                raise
            on_error(error)
        for path in paths:
            found.setdefault(os.path.realpath(path), path)
    return list(found.values())


def listed(paths: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Return paths as strings. Raises TypeError for a single path, whose characters would be taken for paths."""
    if isinstance(paths, (str, bytes, os.PathLike)):
        raise TypeError(f"got one path, {os.fspath(paths)!r}; give a list of paths")
    return [os.fspath(path) for path in paths]


def _expand(given: str, on_skip: Callable[[str], None]) -> list[Path]:
    if not given:
        raise SourceError("an empty name was given; give an image file, or '.' for the current folder")
    try:
        mode = os.stat(given).st_mode
    except (OSError, ValueError) as error:
        if glob.has_magic(given):
            return _matches(given, on_skip)
        if isinstance(error, FileNotFoundError):
            advice = ", a folder of images or a pattern like 'images/*.jpg'"
            raise SourceError(f"{unreadable(given, error)}{advice}") from None
        raise unreadable(given, error) from None
    return _in_folder(given, on_skip) if stat.S_ISDIR(mode) else [Path(given)]


def _in_folder(folder: str, on_skip: Callable[[str], None]) -> list[Path]:
    try:
        paths = list(Path(folder).iterdir())
    except OSError as error:
        raise unreadable(folder, error) from None
    images = _only_images(paths, on_skip)
    if not images and not any(map(is_own_output, paths)):
        inner = sum(map(os.path.isdir, paths))
        advice = f" (for those in its {inner} folders, give the pattern '{printable(folder)}/**/*')" if inner else ""
        raise SourceError(f"the folder {printable(folder)} contains no image; {_EXPECTED}{advice}")
    return images


def _matches(pattern: str, on_skip: Callable[[str], None]) -> list[Path]:
    try:
        paths = [Path(path) for path in glob.glob(pattern, recursive=True)]
    except (OSError, ValueError) as error:
        raise unreadable(pattern, error) from None
    images = _only_images(paths, on_skip)
    if not images and not any(map(is_own_output, paths)):
        raise SourceError(f"the pattern {printable(pattern)} matches no image; {_EXPECTED}")
    return images


def _only_images(paths: Iterable[Path], on_skip: Callable[[str], None]) -> list[Path]:
    suffixes = kinds.readable_suffixes()
    images = []
    for path in sorted(paths):
        # A file that may not be looked at is not a folder here, so reading it gives the reason.
        if path.name.startswith(".") or os.path.isdir(path) or is_own_output(path):
            continue
        if path.suffix.lower() in suffixes:
            images.append(path)
        elif (reason := _reason_skipped(path)) is not None:
            on_skip(f"{printable(path)} is skipped: {reason}")
    return images


def _reason_skipped(path: Path) -> str | None:
    if kinds.has_odd_suffix(path.name) and kinds.begins_like_an_image(head(path, 16)):
        return "it begins like an image, but its name has no suffix of one; rename it, or name the file itself"
    return kinds.reason_unread(path.name)
