"""Errors of data sets."""

import contextlib
import os
from collections.abc import Iterator

from hyperseg.images.errors import unreadable


class DataError(ValueError):
    """A data set, or one file of it, cannot be used. The message names the file and says what to do."""


@contextlib.contextmanager
def system_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn errors of the operating system into DataErrors: about the file that they name, or about `path`."""
    try:
        yield
    except OSError as error:
        raise DataError(str(unreadable(os.fsdecode(error.filename or path), error))) from None
