"""Released weights by the name of their network: downloaded once to the cache folder, and checked from then on.

The authors published no checksums. So the first file is trusted if it loads as its network: its size and SHA-256 are
recorded, and a file that differs later is refused. Nothing in a file is executed.

They are in the folder ``weights`` of the cache folder, which ``HYPERSEG_CACHE`` moves. ``HYPERSEG_MIRROR`` is another
address that has the files, ``HYPERSEG_OFFLINE=1`` turns downloads off.
"""

import contextlib
import difflib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from hyperseg._downloads import RECORD, digests, lock_path, read_record, write_record
from hyperseg._files import cache_folder, file_lock, printable
from hyperseg._progress import ProgressBars
from hyperseg._text import brief
from hyperseg._transfer import TransferError, disk_error, fetch
from hyperseg.models.errors import CheckpointError
from hyperseg.models.variants import ALIASES, PUBLISHED, VARIANTS

if TYPE_CHECKING:
    import torch

    from hyperseg.models.hyperseg import HyperSeg

logger = logging.getLogger("hyperseg.models")

_RELEASE = "https://github.com/YuvalNirkin/hyperseg/releases/download/v1.0"
_PATIENCE = 3600.0  # seconds to wait for another process that downloads


def released_names() -> list[str]:
    """Return the names of the networks whose weights were released."""
    return sorted(name for name, figures in PUBLISHED.items() if figures.weights is not None)


def named_network(text: str) -> str | None:
    """Return the full name of the published network that a text names, in full or for short; None if it names none."""
    name = ALIASES.get(text, text)
    return name if name in VARIANTS else None


def names_hint(text: str) -> str:
    """Return a part of messages about an unknown name: the names that exist, and the closest one."""
    short = {full: alias for alias, full in ALIASES.items()}
    listed = ", ".join(f"{name} (or {short[name]})" if name in short else name for name in released_names())
    known = [*released_names(), *ALIASES]
    stem = Path(text).name.lower().replace("_", "-")
    closest = difflib.get_close_matches(stem, known, n=1, cutoff=0.5)
    question = f"; did you mean {closest[0]}?" if closest else ""
    return f"weights were released of {listed}{question}"


def released_file(name: str) -> str:
    """Return the name of the released file of a network, which is given by its full name.

    Raises:
        CheckpointError: its weights were not released; the message says what to do.
    """
    if (file := PUBLISHED[name].weights) is None:
        others = [other for other in released_names() if VARIANTS[other].dataset == VARIANTS[name].dataset]
        instead = f", or take {' or '.join(others)}, which has the same classes" if others else ""
        raise CheckpointError(
            f"no weights of {name} were ever released; train it (hyperseg train --recipe {name}){instead}"
        )
    return file


def released_path(name: str) -> Path:
    """Return where the released file of a network is kept, which need not be there yet. Raises CheckpointError."""
    file = released_file(name)
    try:
        return cache_folder() / "weights" / file
    except RuntimeError as error:  # the user has no home folder
        raise CheckpointError(
            f"the weights of {name} cannot be kept: {error}; name a folder by HYPERSEG_CACHE"
        ) from None


def load_released(name: str, device: "str | torch.device" = "cpu", check_finite: bool = True) -> "HyperSeg":
    """Load the released weights of a network; they are downloaded if the cache folder does not have them.

    A download that was interrupted continues; of several processes one downloads, and the others wait for it. A
    progress bar is shown if stderr is a terminal.

    Args:
        name: full name of a published network.
        device, check_finite: as in :func:`hyperseg.load`.

    Raises:
        CheckpointError: there are no released weights, they cannot be downloaded, or the file is not the one that was
            downloaded first or not a checkpoint of the network. The message says what to do.
    """
    from hyperseg.models.official import load_official

    path = released_path(name)
    folder, file = path.parent, path.name
    if path.exists() and (entry := read_record(folder).get(file)):
        _check_recorded(path, entry)
        return load_official(path, name, device, check_finite)
    try:
        if not path.exists() and is_offline():
            raise CheckpointError(
                f"the weights of {name} are not in the cache ({printable(path)}), and downloads are turned off "
                f"(--offline or HYPERSEG_OFFLINE); allow them once, or get {_url(file)} on another machine and put it "
                "there"
            )
        with _alone(folder, name):
            return _first_load(path, name, device, check_finite)
    except TransferError as error:
        reason = f"{error}" if str(error).endswith("?") else f"{error}."
        original = "it" if f"{_RELEASE}/{file}" in reason else f"{_RELEASE}/{file}"
        raise CheckpointError(
            f"the weights of {name} could not be obtained: {reason} HYPERSEG_MIRROR can name another address with this "
            f"file; or get {original} on another machine, and give it or put it in {printable(folder)}"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{disk_error(error, folder)}; HYPERSEG_CACHE can name another folder") from None


def is_offline() -> bool:
    """Return whether HYPERSEG_OFFLINE turns downloads off."""
    return os.environ.get("HYPERSEG_OFFLINE", "").strip().lower() not in ("", "0", "false", "no", "off")


def _url(file: str) -> str:
    return f"{(os.environ.get('HYPERSEG_MIRROR') or _RELEASE).rstrip('/')}/{file}"


def _first_load(path: Path, name: str, device: "str | torch.device", check_finite: bool) -> "HyperSeg":
    """Download a file unless it is there, load it, and record it if that is new. No other process does so now."""
    from hyperseg.models.official import load_official

    folder, file, url = path.parent, path.name, _url(path.name)
    found = path.exists()  # put there by the user, or by a process that ended before it recorded the file
    if not found:
        logger.info("downloading %s to %s", printable(url), printable(path))
        with ProgressBars() as bars:
            fetch(url, path, bars.show)
    source = str(path) if found else url
    if entry := read_record(folder).get(file):
        try:
            _check_recorded(path, entry)
        except CheckpointError:
            if found:  # another process has just downloaded it
                raise
            size = path.stat().st_size
            path.unlink()
            raise CheckpointError(
                f"the file from {printable(url)} ({size} bytes) is not the one that was downloaded first "
                f"({entry.get('size')} bytes, SHA-256 {entry.get('sha256')}); it was deleted. Try again or name a "
                "mirror by HYPERSEG_MIRROR; if the new file is the right one, remove the entry from "
                f"{printable(folder / RECORD)}"
            ) from None
        return load_official(path, name, device, check_finite)
    size, sha256 = path.stat().st_size, digests(path)[1]
    try:
        network = load_official(path, name, device, check_finite)
    except CheckpointError as error:
        if found:
            raise CheckpointError(f"{error} Remove the file, and it is downloaded again.") from None
        path.unlink()
        raise CheckpointError(
            f"the file from {printable(url)} is not the weights of {name}, and was deleted. Try again; if that does "
            f"not help, name a mirror by HYPERSEG_MIRROR, or give a file that you have.\n{error}"
        ) from None
    try:
        write_record(folder, file, {"url": source, "size": size, "sha256": sha256})
    except OSError as error:  # such as a cache that this user may only read
        logger.warning("%s cannot be recorded, so it is not checked later (%s)", printable(path), brief(error))
    return network


def _check_recorded(path: Path, entry: dict[str, object]) -> None:
    """Compare a file with its record. Raises CheckpointError."""
    try:
        size = path.stat().st_size
        sha256 = digests(path)[1] if size == entry.get("size") else None  # reading takes longer than asking
    except OSError as error:
        raise CheckpointError(f"{printable(path)} cannot be read ({brief(error)})") from None
    if sha256 == entry.get("sha256"):
        return
    found = f"{size} bytes" if sha256 is None else f"the SHA-256 {sha256}"
    wanted = f"{entry.get('size')} bytes" if sha256 is None else str(entry.get("sha256"))
    raise CheckpointError(
        f"{printable(path)} has {found}, but {wanted} when it was downloaded first: it is damaged or was replaced. "
        "Remove the file, and it is downloaded again"
    )


@contextlib.contextmanager
def _alone(folder: Path, name: str) -> Iterator[None]:
    """Wait until no other process downloads to the folder, and keep others from it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = lock_path(folder)
    with contextlib.ExitStack() as stack:
        if not stack.enter_context(file_lock(lock, patience=0)) and lock.exists():
            logger.warning("waiting for another process that downloads to %s", printable(folder))
            if not stack.enter_context(file_lock(lock, patience=_PATIENCE)):
                raise TransferError(f"another process downloads to {printable(folder)} for too long; end it")
        yield
