"""Listings: the image files of folders and zip archives, sorted and without hidden files, and how they form pairs."""

import os
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from hyperseg._files import printable
from hyperseg._text import brief, counted
from hyperseg.data.errors import DataError
from hyperseg.data.files import DataFile
from hyperseg.images import kinds


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return what is in a folder, sorted by name, without hidden files. Raises DataError."""
    try:
        with os.scandir(folder) as found:
            return sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"the folder {printable(folder)} cannot be listed ({brief(error)})") from None


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder. A link to nothing or to itself is a file, and an error when it is read."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def image_files(folder: Path) -> list[DataFile]:
    """Return the image files of a folder, of every kind that is read. Other files, such as notes, are left out.

    Raises DataError if the folder cannot be listed, or has an image of a kind that is not read.
    """
    suffixes = kinds.readable_suffixes()
    files = []
    for entry in entries(folder):
        if is_folder(entry):
            continue
        if os.path.splitext(entry.name)[1].lower() in suffixes:
            files.append(DataFile(entry.path))
        elif (reason := kinds.reason_unread(entry.name)) is not None:
            raise DataError(f"{printable(entry.path)} cannot be used: {reason}")
    return files


def folders(folder: Path) -> list[Path]:
    """Return the folders in a folder, sorted. Raises DataError."""
    return [Path(entry.path) for entry in entries(folder) if is_folder(entry)]


def archive_files(path: Path) -> list[DataFile]:
    """Return the image files in a zip archive, sorted. Raises DataError if it is damaged or no archive."""
    suffixes = kinds.readable_suffixes()
    try:
        with zipfile.ZipFile(path) as archive:
            names = [info.filename for info in archive.infolist() if not info.is_dir()]
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{printable(path)} cannot be read as a zip archive ({brief(error)}); is the download complete?"
        ) from None
    files = []
    for name in sorted(names):
        pure = PurePosixPath(name)
        hidden = any(part.startswith(".") or part == "__MACOSX" for part in pure.parts)
        if not hidden and pure.suffix.lower() in suffixes:
            files.append(DataFile(str(path), name))
    return files


def by_key(files: Iterable[DataFile], key: Callable[[DataFile], str | None], what: str) -> dict[str, DataFile]:
    """Return files by a key of their names; those whose key is None are left out.

    Args:
        what: they are, in the plural, for the message.

    Raises:
        DataError: two files have the same key.
    """
    found: dict[str, DataFile] = {}
    for file in files:
        name = key(file)
        if name is None:
            continue
        if name in found:
            raise DataError(f"two {what} belong to {printable(name)}: {found[name]} and {file}; remove one")
        found[name] = file
    return found


def without_ending(ending: str) -> Callable[[DataFile], str | None]:
    """Return a key for :func:`by_key`: the stem of a file without `ending`, None for files that end otherwise."""

    def key(file: DataFile) -> str | None:
        return file.stem.removesuffix(ending) if file.stem.endswith(ending) and file.stem != ending else None

    return key


def require_labels(images: Mapping[str, DataFile], labels: Mapping[str, DataFile], looked_for: str) -> None:
    """Raise DataError if images have no label file.

    Args:
        looked_for: the label files' names and place, as the end of the message: "NAME.png in root/trainannot".
    """
    if missing := [images[name] for name in images if name not in labels]:
        verb = "has" if len(missing) == 1 else "have"
        text = f"{first_of(missing, 'image')} of {len(images)} {verb} no label file; looked for {looked_for}"
        raise DataError(text)


def first_of(files: Sequence[object], noun: str) -> str:
    """Return a count and the first names: "2 images (a.png, b.png)", "9 images (a.png, b.png, c.png, ...)"."""
    names = ", ".join(map(str, files[:3])) + (", ..." if len(files) > 3 else "")
    return f"{counted(len(files), noun)} ({names})"


def lines(path: Path) -> list[str]:
    """Return the lines of a text file without blank ones. Raises DataError."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the list {printable(path)} cannot be read ({brief(error)})") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def splits_of(split: str, known: Iterable[str], name: str) -> list[str]:
    """Return the parts of a split such as "train+val".

    Raises:
        DataError: a part is not among those `known`, or occurs twice.
    """
    known = tuple(known)
    parts = [part.strip() for part in split.split("+")]
    for part in parts:
        if part not in known:
            text = f"{name} has no split {printable(part)!r}" if part else f"{printable(split)!r} is no split of {name}"
            joined = f", or several joined by '+', such as {'+'.join(known[:2])}" if len(known) > 1 else ""
            raise DataError(f"{text}; give {', '.join(known)}{joined}")
    if len(set(parts)) < len(parts):
        raise DataError(f"the split {printable(split)!r} of {name} has a part twice; give each once")
    return parts


def count_note(found: int, published: int | None, split: str = "") -> str:
    """Return what to add to a form if the number of images, in all or of a split, is not the published one."""
    if published is None or found == published:
        return ""
    return f"; {split}{' has ' if split else ''}{counted(found, 'image')}, where {published} were published"


def root_folder(root: str | os.PathLike[str]) -> Path:
    """Return the root of a data set as a path. Raises DataError if it is no folder."""
    path = Path(root).expanduser()
    if not path.exists():
        raise DataError(f"the root {printable(path)} does not exist; give the folder of the data set")
    if not path.is_dir():
        raise DataError(f"the root {printable(path)} is a file; give the folder of the data set")
    return path
