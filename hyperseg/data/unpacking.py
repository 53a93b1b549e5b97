"""Unpacking of archives that came over a network: nothing outside the folder, and no half of a file under its name."""

import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from hyperseg._files import printable
from hyperseg._text import brief
from hyperseg._transfer import Progress, disk_error
from hyperseg.data.errors import DataError


class DamagedArchive(DataError):
    """An archive cannot be unpacked, or not safely, however often one tries."""


def unpack(archive: Path, folder: Path, on_progress: Callable[[Progress], None] | None = None) -> None:
    """Unpack a tar or zip archive into a folder, next to what is there; files of the same names are replaced.

    It is unpacked in a hidden folder first, so that a damaged archive or an interruption leaves `folder` as it is.

    Raises:
        DamagedArchive: the archive is damaged, or has members outside the folder, links or devices.
        DataError: the disk is full, or cannot be written to.
    """
    show = on_progress or (lambda progress: None)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=folder) as temporary:
            (_unpack_zip if archive.suffix == ".zip" else _unpack_tar)(archive, Path(temporary), show)
            _merge(Path(temporary), folder)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise DamagedArchive(f"{printable(archive)} is damaged ({brief(error)})") from None
    except OSError as error:
        raise DataError(str(disk_error(error, folder))) from None


def _unpack_tar(archive: Path, folder: Path, show: Callable[[Progress], None]) -> None:
    total = archive.stat().st_size
    with tarfile.open(archive) as file:
        for member in file:
            if not (member.isfile() or member.isdir()) or not _is_inside(member.name):
                raise _unsafe(archive, member.name)
            member.mode = 0o755 if member.isdir() else 0o644
            if hasattr(tarfile, "data_filter"):  # from Python 3.10.12, 3.11.4 and 3.12 on
                file.extract(member, folder, filter="data")
            else:
                file.extract(member, folder, set_attrs=False)
            show(Progress(archive.name, min(member.offset_data + member.size, total), total, unpacking=True))


def _unpack_zip(archive: Path, folder: Path, show: Callable[[Progress], None]) -> None:
    with zipfile.ZipFile(archive) as file:
        members = [member for member in file.infolist() if not member.filename.startswith("__MACOSX/")]
        total, done = sum(member.file_size for member in members), 0
        for member in members:
            kind = stat.S_IFMT(member.external_attr >> 16)
            if not _is_inside(member.filename) or kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _unsafe(archive, member.filename)
            file.extract(member, folder)
            done += member.file_size
            show(Progress(archive.name, done, total, unpacking=True))


def _is_inside(name: str) -> bool:
    """Return whether a member stays in the folder that it is unpacked into, on every system."""
    path = PurePosixPath(name.replace("\\", "/"))
    return not path.is_absolute() and ".." not in path.parts and ":" not in name


def _unsafe(archive: Path, name: str) -> DamagedArchive:
    text = f"{printable(archive)} has the member {printable(name)}, a link, a device or a file outside the folder"
    return DamagedArchive(f"{text}; nothing was unpacked")


def _merge(source: Path, target: Path) -> None:
    """Move what is in one folder into another, folder by folder."""
    for entry in sorted(os.scandir(source), key=lambda entry: entry.name):
        place = target / entry.name
        if entry.is_dir() and place.is_dir():
            _merge(Path(entry.path), place)
        else:
            if place.is_dir():
                shutil.rmtree(place)
            os.replace(entry.path, place)
