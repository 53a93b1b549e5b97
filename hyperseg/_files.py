"""Files for the whole project: atomic writes, printable names, the cache folder, and locks between processes."""

import contextlib
import os
import secrets
import stat
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Replace a file all at once: ``with atomic_write(path) as temporary:`` and write to ``temporary``.

    ``temporary`` is a path in the folder of ``path``, new on every call and with the same suffix. The folder is created
    if it is missing. If the block completes, the temporary file replaces ``path``. If anything is raised,
    KeyboardInterrupt included, ``path`` keeps its old contents and the temporary file is removed. A replaced file keeps
    its permissions, a new one gets those that ``open`` gives. A symbolic link is replaced, not followed.

    Raises:
        OSError: the folder cannot be created or written to, or the file cannot be replaced.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp{target.suffix}")
    # A generator, not a class with __exit__: its cleanup also runs if an interrupt arrives on the way in or out.
    try:
        mode = _mode_of(target, temporary)
        yield temporary
        os.chmod(temporary, mode)  # some writers, such as safetensors, make the file readable by its owner only
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _mode_of(target: Path, temporary: Path) -> int:
    """Return the permissions of ``target`` or, if it does not exist, those of a file that ``open`` creates.

    The umask is read from a file: ``os.umask`` can only set it, which other threads would see.
    """
    try:
        return stat.S_IMODE(target.stat().st_mode)
    except OSError:
        with open(temporary, "xb") as file:
            mode = stat.S_IMODE(os.stat(file.fileno()).st_mode)
        temporary.unlink()
        return mode


def printable(name: str | os.PathLike[str]) -> str:
    """Return a file name or a message as one line that any terminal can show.

    Control characters (a newline, a colour code of a terminal), invisible characters and bytes that are not UTF-8 are
    escaped as Python does it: ``\\n``, ``\\x1b``, ``\\u202e``, ``\\xe9``. Everything else stays.
    """
    return "".join(map(_printable_character, os.fspath(name)))


def _printable_character(character: str) -> str:
    if character.isprintable() or unicodedata.category(character) == "Zs":  # a space of any width
        return character
    if "\udc80" <= character <= "\udcff":  # Python's name for a byte that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def cache_folder() -> Path:
    """Return the folder for what can be computed again: HYPERSEG_CACHE, or the system's place for the user's caches.

    It need not exist.

    Raises:
        RuntimeError: the user has no home folder.
    """
    if named := os.environ.get("HYPERSEG_CACHE"):
        return Path(named).expanduser()
    if os.name == "nt" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local) / "hyperseg" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "hyperseg"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hyperseg"


@contextlib.contextmanager
def file_lock(path: str | os.PathLike[str], patience: float) -> Iterator[bool]:
    """Hold a lock that other processes respect, by an empty file that stays; yield whether it is held.

    It ends with the process that holds it, however that ends. Without file locks (Windows, some network file systems)
    or a writable folder it is not held.

    Args:
        patience: seconds to wait for another process.
    """
    try:
        import fcntl

        Path(path).parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "ab")  # noqa: SIM115 - closed below, which releases the lock
    except (ImportError, OSError):
        yield False
        return
    with file:
        yield _acquire(lambda: fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB), patience)


def _acquire(try_once: Callable[[], None], patience: float) -> bool:
    end = time.monotonic() + patience
    while (taken := _attempt(try_once)) is None and time.monotonic() < end:
        time.sleep(0.05)
    return bool(taken)


def _attempt(try_once: Callable[[], None]) -> bool | None:
    """Return whether the lock is held; None if another process holds it."""
    try:
        try_once()
    except BlockingIOError:
        return None
    except OSError:
        return False
    return True
