"""Files for the whole project: atomic writes, printable names, the cache folder, and locks between processes."""

import contextlib
import os
import secrets
import shutil
import stat
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
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
    with atomic_writes([path]) as (temporary,):
        yield temporary


@contextlib.contextmanager
def atomic_writes(paths: Sequence[str | os.PathLike[str]], durable: bool = False) -> Iterator[list[Path]]:
    """Replace several files, all or none: :func:`atomic_write` for each, with all temporary paths in a list.

    The files are replaced in the order of ``paths``, when all temporary files are complete. If anything is raised
    while they are, those already replaced get their old contents back. Only a process that is killed just then leaves
    the first files new and the others old, so the first file must be enough for a reader to notice.

    Args:
        paths: files of one or several folders, at least one.
        durable: also flush the files to the disk before they replace the old ones, so that a power failure leaves
            either too. This takes milliseconds per file.

    Raises:
        OSError: a folder cannot be created or written to, or a file cannot be replaced.
    """
    targets = [Path(path) for path in paths]
    temporaries = [_beside(target, "tmp") for target in targets]
    # Generators, not classes with __exit__: their cleanup also runs if an interrupt arrives on the way in or out.
    try:
        for target in targets:
            target.parent.mkdir(parents=True, exist_ok=True)
        modes = [_mode_of(*pair) for pair in zip(targets, temporaries, strict=True)]
        yield temporaries
        for temporary, mode in zip(temporaries, modes, strict=True):
            os.chmod(temporary, mode)  # some writers, such as safetensors, make the file readable by its owner only
            if durable:
                _flush(temporary)
        _replace(temporaries, targets)
        if durable and os.name == "posix":  # the new names are in the folders' data
            for folder in {target.parent for target in targets}:
                with contextlib.suppress(OSError):  # not every file system can
                    _flush(folder)
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)


def _replace(temporaries: Sequence[Path], targets: Sequence[Path]) -> None:
    """Rename each temporary file to its target, in this order; if one cannot be renamed, undo those before."""
    if len(targets) == 1:
        os.replace(temporaries[0], targets[0])
        return
    backups = [_beside(target, "old") for target in targets]
    existed = [os.path.lexists(target) for target in targets]
    try:
        for target, backup, old in zip(targets, backups, existed, strict=True):
            if old:
                _keep(target, backup)
        try:
            for temporary, target in zip(temporaries, targets, strict=True):
                os.replace(temporary, target)
        except BaseException:
            for temporary, target, backup, old in zip(temporaries, targets, backups, existed, strict=True):
                if not temporary.exists():  # it was renamed
                    os.replace(backup, target) if old else target.unlink()
            raise
    finally:
        for backup in backups:
            backup.unlink(missing_ok=True)


def _keep(path: Path, backup: Path) -> None:
    """Give a file a second name; copy it on file systems without hard links. A folder is an error."""
    if path.is_dir() and not path.is_symlink():
        raise IsADirectoryError(f"{path} is a folder, expected a file; remove it or write somewhere else")
    try:
        os.link(path, backup, follow_symlinks=False)
    except (OSError, NotImplementedError):
        shutil.copy2(path, backup, follow_symlinks=False)


def _beside(target: Path, kind: str) -> Path:
    """Return a new hidden name in the folder of ``target``, with its suffix."""
    return target.with_name(f".{secrets.token_hex(8)}.{kind}{target.suffix}")


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
    """Return the folder for what can be had again: HYPERSEG_CACHE, or the system's place for the user's caches.

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
