"""Inputs with an address: files that are downloaded, and streams that are watched."""

import re
import urllib.parse
from collections.abc import Callable
from pathlib import Path

from hyperseg._files import printable
from hyperseg._transfer import Progress, TransferError, fetch
from hyperseg.images.errors import SourceError

_STREAMS = ("rtsp", "rtsps", "rtmp", "rtmps", "srt", "udp", "rtp", "tcp")
_LISTS = (".m3u8", ".mpd", ".mjpg", ".mjpeg", ".cgi", ".sdp")


def is_address(text: str) -> bool:
    """Return whether an input is an address of the network: scheme://..."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text) is not None


def is_stream(address: str) -> bool:
    """Return whether what is at an address is a stream: by its scheme, or as a playlist or motion JPEG by its name.

    Raises SourceError for an address that is not valid.
    """
    parts = _parts(address)
    return parts.scheme.lower() in _STREAMS or Path(parts.path).suffix.lower() in _LISTS


def name_of(address: str) -> str:
    """Return a file name for what is at an address: the end of its path, or the name of its host."""
    parts = _parts(address)
    name = urllib.parse.unquote(parts.path.rstrip("/").rpartition("/")[2]) or parts.hostname or "download"
    return re.sub(r"[^\w.+-]", "_", name).lstrip(".") or "download"


def _parts(address: str) -> urllib.parse.SplitResult:
    try:
        return urllib.parse.urlsplit(address)
    except ValueError as error:
        raise SourceError(f"{printable(address)} is no address that can be used ({error})") from None


def download(address: str, folder: Path, on_progress: Callable[[Progress], None] | None = None) -> Path:
    """Download a file into a folder. Raises SourceError, also for an address that is not http:// or https://."""
    try:
        return fetch(address, folder / name_of(address), on_progress, attempts=3)
    except TransferError as error:
        raise SourceError(str(error)) from None
    except ValueError as error:
        raise SourceError(f"{printable(address)} is no address that can be used ({error})") from None
