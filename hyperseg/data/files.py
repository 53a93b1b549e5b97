"""Files of data sets: on disk, or members of a zip archive that is read without being unpacked."""

import os
import threading
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperseg._files import printable
from hyperseg._text import brief
from hyperseg.data.errors import DataError
from hyperseg.images.errors import SourceError
from hyperseg.images.reading import contents


@dataclass(frozen=True, order=True)
class DataFile:
    """A file, or the member of a zip archive. It can be pickled, so that workers of a loader can read it.

    path: the file, or the archive.
    member: the name inside the archive; None for a file on disk.
    """

    path: str
    member: str | None = None

    def __str__(self) -> str:
        return printable(self.path if self.member is None else f"{self.path}:{self.member}")

    @property
    def stem(self) -> str:
        """The name of the file without folders and suffix."""
        return Path(self.member or self.path).stem

    def read(self) -> bytes:
        """Return the contents. Raises DataError if the file is missing, empty or damaged, or may not be read."""
        if self.member is None:
            try:
                return contents(self.path)
            except SourceError as error:
                raise DataError(str(error)) from None
        try:
            data = _archive(self.path).read(self.member)
        except KeyError:
            raise DataError(f"there is no {printable(self.member)} in the archive {printable(self.path)}") from None
        except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError) as error:
            raise DataError(f"{self} cannot be read ({brief(error)}); download the archive again") from None
        if not data:
            raise DataError(f"{self} is empty (0 bytes); download the archive again")
        return data

    def fingerprint(self) -> list[Any]:
        """Return numbers that change when the contents do: size and time, in an archive size and CRC.

        Raises DataError if there is no such file.
        """
        try:
            if self.member is None:
                status = os.stat(self.path)
                return [status.st_size, status.st_mtime_ns]
            info = _archive(self.path).getinfo(self.member)
            return [info.file_size, info.CRC]
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            raise DataError(f"{self} cannot be read ({brief(error)})") from None


_local = threading.local()  # a ZipFile is not safe to share between threads, nor over a fork


def _archive(path: str) -> zipfile.ZipFile:
    archives = getattr(_local, "archives", None)
    if archives is None or _local.process != os.getpid():
        archives = _local.archives = {}
        _local.process = os.getpid()
    if path not in archives:
        archives[path] = zipfile.ZipFile(path)
    return archives[path]
