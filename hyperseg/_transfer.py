"""Transfer of a file over HTTP: continued where it stopped, and complete or not there."""

import contextlib
import errno
import http.client
import json
import os
import re
import shutil
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperseg import __version__
from hyperseg._files import atomic_write, printable
from hyperseg._text import brief

_BLOCK = 2**18
_INTERVAL = 0.2  # seconds between calls of on_progress
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class Progress:
    """The state of a transfer, or of the unpacking after it, in bytes.

    total: None if the server does not say.
    """

    name: str
    done: int
    total: int | None
    unpacking: bool = False


class TransferError(ValueError):
    """A file cannot be downloaded, or not be written. The message names the address or the file, and what to do."""


class _Cut(Exception):
    """The transfer ended early; it can be continued."""


def fetch(
    url: str,
    path: Path,
    on_progress: Callable[[Progress], None] | None = None,
    attempts: int = 5,
    timeout: float = 30.0,
    pause: float = 1.0,
) -> Path:
    """Download a file. An existing `path` is complete and stays; `path` + ".part" is continued.

    Args:
        attempts: how often in a row a transfer may end early without any new data before it is given up.
        timeout: seconds without data after which a connection counts as cut.
        pause: seconds before the next attempt, doubled each time.

    Raises:
        TransferError: the file is not on the server, the server or the network fails, or the disk is full.
    """
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise TransferError(f"{printable(url)} is no address of a file; give one with http:// or https://")
    if path.exists():
        return path
    part = path.with_name(path.name + ".part")
    failures = 0
    most = _size(part)
    while True:
        try:
            _transfer(url, path, part, on_progress, timeout)
            os.replace(part, path)
            _state_path(part).unlink(missing_ok=True)
            return path
        except urllib.error.HTTPError as error:
            with error:
                if error.code not in _TRANSIENT:
                    raise _refused(url, error) from None
                reason = f"the server reported {error.code} {error.reason}"
        except urllib.error.URLError as error:
            reason = _reason(error.reason)
            if not _size(part):  # the address is wrong, or there is no network: waiting does not help
                raise TransferError(f"{printable(url)} could not be downloaded: {reason}") from None
        except _Cut as error:
            reason = str(error)
        except OSError as error:
            raise disk_error(error, path) from None
        failures = 1 if _size(part) > most else failures + 1
        most = max(most, _size(part))
        if failures >= attempts:
            kept = _size(part) if _read_state(part, url) else 0
            rest = f"{kept} bytes are kept in {printable(part)}; call again to continue" if kept else "try again later"
            raise TransferError(f"{printable(url)} could not be downloaded: {reason}; {rest}")
        time.sleep(min(pause * 2 ** (failures - 1), 30))


def _transfer(url: str, path: Path, part: Path, on_progress: Callable[[Progress], None] | None, timeout: float) -> None:
    """Make one request for what is missing, and append it to `part`. Raises _Cut if less came than announced."""
    state = _read_state(part, url)
    start = _size(part) if state else 0
    request = urllib.request.Request(
        url, headers={"User-Agent": f"hyperseg/{__version__}", "Accept-Encoding": "identity"}
    )
    if start:
        request.add_header("Range", f"bytes={start}-")
        request.add_header("If-Range", state["tag"])
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except (http.client.HTTPException, TimeoutError, ConnectionError) as error:
        raise _Cut(_reason(error)) from None
    except urllib.error.HTTPError as error:
        if error.code != 416 or not start:
            raise
        error.close()  # nothing after `start`: the file is complete, or it changed
        if state.get("total") == start:
            return
        part.unlink()
        raise _Cut("the file on the server changed") from None
    with response:
        restarted = start > 0 and not _continues(response, start)
        if restarted:
            start = 0  # the server cannot continue, or the file changed: it sends all of it
        if not start:
            part.unlink(missing_ok=True)  # before the state says that it is the beginning of this file
        total = _total(response, start)
        if total is not None:
            _require_space(part, total - start)
        tag = state["tag"] if start else _tag(response)
        _write_state(part, {"url": url, "tag": tag, "total": total} if tag else None)
        done, shown = start, 0.0
        with open(part, "ab" if start else "wb") as file:
            file.truncate(start)
            while block := _read(response):
                file.write(block)
                done += len(block)
                if on_progress is not None and time.monotonic() - shown >= _INTERVAL:
                    shown = time.monotonic()
                    on_progress(Progress(path.name, done, total))
        if total is not None and done != total:
            hint = ", and the server cannot continue a transfer" if restarted or not tag else ""
            raise _Cut(f"the connection was cut after {done} of {total} bytes{hint}")
        if on_progress is not None:
            on_progress(Progress(path.name, done, total))


def _read(response: Any) -> bytes:
    try:
        return response.read(_BLOCK)
    except (OSError, http.client.HTTPException) as error:
        raise _Cut(_reason(error)) from None


def _tag(response: Any) -> str | None:
    """Return what identifies the version of a file on the server; None if nothing does."""
    tag = response.headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified")


def _continues(response: Any, start: int) -> bool:
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    return response.status == 206 and match is not None and int(match[1]) == start


def _total(response: Any, start: int) -> int | None:
    length = response.headers.get("Content-Length", "")
    return start + int(length) if length.isdigit() else None


def _require_space(part: Path, needed: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"{needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")


def _state_path(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _read_state(part: Path, url: str) -> dict[str, Any]:
    """Return which file `part` is the beginning of; empty if that is not known, so that it cannot be continued."""
    with contextlib.suppress(OSError, ValueError):
        state = json.loads(_state_path(part).read_text())
        if isinstance(state, dict) and state.get("url") == url and isinstance(state.get("tag"), str):
            return state
    return {}


def _write_state(part: Path, state: dict[str, Any] | None) -> None:
    if state is None:
        _state_path(part).unlink(missing_ok=True)
        return
    with atomic_write(_state_path(part)) as temporary:
        temporary.write_text(json.dumps(state))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _refused(url: str, error: urllib.error.HTTPError) -> TransferError:
    if error.code in (404, 410):
        return TransferError(
            f"{printable(url)} is not there ({error.code} {error.reason}); give the address of a mirror"
        )
    if error.code in (401, 403):
        text = f"{printable(url)} may not be downloaded ({error.code} {error.reason}); it may need a login"
        return TransferError(f"{text}: download it with a browser")
    return TransferError(f"{printable(url)} could not be downloaded: the server reported {error.code} {error.reason}")


def _reason(cause: BaseException | str) -> str:
    if isinstance(cause, socket.gaierror):
        return "the server's name could not be resolved; is there a network?"
    if isinstance(cause, TimeoutError):
        return "the server sent nothing for too long"
    if isinstance(cause, http.client.IncompleteRead):
        return "the connection was cut"
    return brief(cause) if isinstance(cause, Exception) else printable(str(cause))


def disk_error(error: OSError, path: Path) -> TransferError:
    """Return the TransferError for a file or folder that cannot be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        text = f"the disk is full: {printable(path)} cannot be written ({error.strerror})"
        return TransferError(f"{text}; make space and call again, it continues")
    return TransferError(f"{printable(path)} cannot be written ({error.strerror or brief(error)})")
