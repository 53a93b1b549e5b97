"""Files for the whole project: atomic writes, and names that can be shown anywhere."""

import contextlib
import os
import secrets
import stat
import unicodedata
from collections.abc import Iterator
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
