"""Names of output files: unique, short enough for a file system, and recognised when they are found as inputs."""

import hashlib
import os
import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

from hyperseg.images.writing import MARK, marked

LABELS, INDEX, COLORS, OVERLAY, SIDE = "_labels", "_index", "_colors", "_overlay", "_side"
_ENDINGS = (LABELS, INDEX, COLORS, OVERLAY, SIDE)

# File systems allow 255 bytes. The longest ending is "_overlay.png".
_MOST_BYTES = 240


def unique_names(paths: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Return a name for the outputs of each file: its stem, or more of its path if several files have the same stem.

    a/1.jpg, b/1.jpg -> a_1, b_1; 1.jpg, 1.png -> 1_jpg, 1_png; numbers if that is not enough. Names differ in more than
    case and the form of an accent, because some file systems ignore these. A name of more than 240 bytes is cut, and
    ends in digits that depend on the whole of it.
    """
    files = [Path(path) for path in paths]
    kinds: list[Callable[[Path], str]] = [
        lambda path: path.stem,
        lambda path: f"{path.stem}_{path.suffix.lstrip('.')}",
        lambda path: f"{path.absolute().parent.name}_{path.stem}",
        lambda path: f"{path.absolute().parent.name}_{path.stem}_{path.suffix.lstrip('.')}",
    ]
    names: dict[int, str] = {}
    taken: set[str] = set()
    groups: dict[str, list[int]] = {}
    for index, path in enumerate(files):
        groups.setdefault(_key(path.stem), []).append(index)
    for members in sorted(groups.values(), key=len):  # files whose stem is unique keep it
        for kind in kinds:
            proposed = [_shortened(kind(files[index])) for index in members]
            keys = {_key(name) for name in proposed}
            if len(keys) == len(members) and not keys & taken:
                break
        else:
            proposed, number = [], 0
            for index in members:
                stem = _shortened(files[index].stem, _MOST_BYTES - 12)
                while _key(name := f"{stem}-{(number := number + 1)}") in taken:
                    pass
                proposed.append(name)
            keys = {_key(name) for name in proposed}
        taken |= keys
        names.update(zip(members, proposed, strict=True))
    return [names[index] for index in range(len(files))]


def is_own_output(path: Path) -> bool:
    """Return whether a file is an output that an earlier run wrote: by its name and its mark."""
    return path.stem.endswith(_ENDINGS) and path.suffix in (".png", ".jpg", ".mp4") and mark_of(path) is not None


def has_mark(path: Path, note: str) -> bool:
    """Return whether a file is an output of an earlier run, with this note."""
    return mark_of(path) == marked(note)


def mark_of(path: Path) -> str | None:
    """Return the mark in an output of an earlier run, with the note that follows it; None for any other file.

    Images and JSON have it near their beginning, videos in the index that precedes the frames.
    """
    data = head(path, 2**21 if path.suffix == ".mp4" else 4096 if path.suffix != ".json" else 2**16)
    match = re.search(re.escape(MARK).encode() + rb"(?: [0-9a-f]+)?", data)
    return match[0].decode() if match else None


def head(path: Path, size: int) -> bytes:
    """Return the first `size` bytes of a regular file; none if it cannot be read."""
    if not os.path.isfile(path):  # opening a pipe would wait for its writer
        return b""
    try:
        with open(path, "rb") as file:
            return file.read(size)
    except OSError:
        return b""


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def fits(name: str, most: int = _MOST_BYTES) -> bool:
    """Return whether a name with the ending of an output fits in a file name."""
    return len(name.encode("utf-8", "surrogatepass")) <= most


def _shortened(name: str, most: int = _MOST_BYTES) -> str:
    if fits(name, most):
        return name
    digits = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    while not fits(name, most - 9):
        name = name[:-1]
    return f"{name}-{digits}"
