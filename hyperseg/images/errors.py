"""Errors of images: each is about one image, so that the next one can be done."""

import errno

from hyperseg._files import printable
from hyperseg._text import brief


class FrameError(Exception):
    """One frame could not be done; the next one may be. The message names the frame and says what to do."""


class SourceError(FrameError, ValueError):
    """An input cannot be read. The message names the input and says what was expected."""


class TooManyPixelsError(SourceError):
    """An image has more pixels than may be decoded. The message names the image and its size, if it is known."""


def unreadable(path: str, error: Exception, wanted: str = "an image file") -> SourceError:
    """Return the SourceError for an error that the operating system gave when it was asked for this path.

    Args:
        wanted: what may be given instead, with its article.
    """
    name = printable(path)
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return SourceError(f"there is no file {name}; give {wanted}")
    if isinstance(error, PermissionError):
        return SourceError(f"{name} may not be read by this user; change its permissions or those of its folder")
    if isinstance(error, ValueError):  # a zero byte, or a character that file names cannot have
        return SourceError(f"'{name}' is not a possible file name; give {wanted}")
    code = error.errno if isinstance(error, OSError) else None
    if code == errno.ENAMETOOLONG:
        return SourceError(f"there is no file {name}: no file name can be so long; give {wanted}")
    if code == errno.ELOOP:
        return SourceError(f"{name} is a symbolic link that leads back to itself; give {wanted}")
    return SourceError(f"{name} could not be read ({brief(error)})")
