"""Image and video files for what a user names: files, folders and patterns."""

import glob
import itertools
import logging
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from hyperseg._files import printable
from hyperseg.images import kinds
from hyperseg.images.errors import SourceError, unreadable
from hyperseg.predict.names import head, is_own_output
from hyperseg.predict.video.opening import begins_like_a_video, has_video_suffix

logger = logging.getLogger("hyperseg.predict")

_EXPECTED = {
    "image": "files ending in .jpg, .png, .tif and the other suffixes that Pillow reads were looked for",
    "image or video": "files ending in .jpg, .png and the other suffixes that Pillow reads, or "
    "in .mp4, .mov and those of other videos, were looked for",
}


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
    return _find(inputs, _Search(on_skip or logger.warning, videos=False), on_error)


def find_media(
    inputs: Sequence[str | os.PathLike[str]],
    on_error: Callable[[SourceError], None] | None = None,
    on_skip: Callable[[str], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> tuple[list[Path], list[Path]]:
    """Return the image files and the video files for `inputs`, see `find_images`.

    `on_note` is called with a message for each folder that has folders with such files, which are left out. None: the
    message is logged.

    A file is a video by its suffix, or, if it is named itself and has no suffix of an image, by its first bytes.
    """
    paths = _find(inputs, _Search(on_skip or logger.warning, videos=True, on_note=on_note or logger.info), on_error)
    videos = [path for path in paths if is_video(path)]
    return [path for path in paths if path not in set(videos)], videos


def is_video(path: Path) -> bool:
    """Return whether a file is a video: by its suffix, or without one that is known by its first bytes."""
    if path.suffix.lower() in kinds.readable_suffixes():
        return False
    return has_video_suffix(path.name) or begins_like_a_video(head(path, 16))


def _find(
    inputs: Sequence[str | os.PathLike[str]], search: "_Search", on_error: Callable[[SourceError], None] | None
) -> list[Path]:
    found: dict[str, Path] = {}
    for given in listed(inputs):
        paths: list[Path] = []
        try:
            paths = search.expand(given)
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


class _Search:
    """Expands what a user names; `videos` says whether videos of folders and patterns are found too."""

    def __init__(
        self, on_skip: Callable[[str], None], videos: bool, on_note: Callable[[str], None] = logger.info
    ) -> None:
        self.on_skip, self.videos, self.on_note = on_skip, videos, on_note
        self.noun = "image or video" if videos else "image"
        self.wanted = f"an {self.noun} file"

    def expand(self, given: str) -> list[Path]:
        """Return the files for a name. Raises SourceError."""
        if not given:
            raise SourceError(f"an empty name was given; give {self.wanted}, or '.' for the current folder")
        try:
            mode = os.stat(given).st_mode
        except (OSError, ValueError) as error:
            if glob.has_magic(given):
                return self._matches(given)
            if isinstance(error, FileNotFoundError):
                advice = f", a folder of {'them' if self.videos else 'images'} or a pattern like 'images/*.jpg'"
                raise SourceError(f"{unreadable(given, error, self.wanted)}{advice}") from None
            raise unreadable(given, error, self.wanted) from None
        return self._in_folder(given) if stat.S_ISDIR(mode) else [Path(given)]

    def _in_folder(self, folder: str) -> list[Path]:
        try:
            paths = list(Path(folder).iterdir())
        except OSError as error:
            raise unreadable(folder, error, self.wanted) from None
        found = self._readable(paths)
        if not found and not any(map(is_own_output, paths)):
            inner = sum(map(os.path.isdir, paths))
            advice = (
                f" (for those in its {inner} folders, give the pattern '{printable(folder)}/**/*')" if inner else ""
            )
            raise SourceError(f"the folder {printable(folder)} contains no {self.noun}; {_EXPECTED[self.noun]}{advice}")
        if left := [path for path in sorted(paths) if self._has_files(path)]:
            count = f"{len(left)} folder with images is" if len(left) == 1 else f"{len(left)} folders with images are"
            self.on_note(
                f"{count} left out of {printable(folder)}, such as {printable(left[0].name)}; "
                f"the pattern '{printable(folder)}/**/*' takes their files too"
            )
        return found

    def _has_files(self, folder: Path) -> bool:
        """Return whether a folder has files that would be found, as far as a look at the first ones of it says."""
        if folder.name.startswith(".") or not os.path.isdir(folder):
            return False
        suffixes = kinds.readable_suffixes()
        files = (Path(top, name) for top, _, names in os.walk(folder) for name in names)
        return any(
            (path.suffix.lower() in suffixes or (self.videos and has_video_suffix(path.name)))
            and not path.name.startswith(".")
            and not is_own_output(path)
            for path in itertools.islice(files, 1000)
        )

    def _matches(self, pattern: str) -> list[Path]:
        try:
            paths = [Path(path) for path in glob.glob(pattern, recursive=True)]
        except (OSError, ValueError) as error:
            raise unreadable(pattern, error, self.wanted) from None
        found = self._readable(paths)
        if not found and not any(map(is_own_output, paths)):
            raise SourceError(f"the pattern {printable(pattern)} matches no {self.noun}; {_EXPECTED[self.noun]}")
        return found

    def _readable(self, paths: Iterable[Path]) -> list[Path]:
        suffixes = kinds.readable_suffixes()
        found = []
        for path in sorted(paths):
            # A file that may not be looked at is not a folder here, so reading it gives the reason.
            if path.name.startswith(".") or os.path.isdir(path) or is_own_output(path):
                continue
            if path.suffix.lower() in suffixes or (self.videos and _is_video_of_a_folder(path)):
                found.append(path)
            elif (reason := _reason_skipped(path)) is not None:
                self.on_skip(f"{printable(path)} is skipped: {reason}")
        return found


def _is_video_of_a_folder(path: Path) -> bool:
    # .ts is also the suffix of TypeScript
    return has_video_suffix(path.name) and (path.suffix.lower() != ".ts" or head(path, 1) == b"G")


def _reason_skipped(path: Path) -> str | None:
    if kinds.has_odd_suffix(path.name) and kinds.begins_like_an_image(head(path, 16)):
        return "it begins like an image, but its name has no suffix of one; rename it, or name the file itself"
    return kinds.reason_unread(path.name)
