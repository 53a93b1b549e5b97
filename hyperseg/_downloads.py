"""Downloads of a folder: a record of what came from where, its checksums, and one process at a time."""

import hashlib
import json
import os
import tempfile
from pathlib import Path

from hyperseg._files import atomic_write

RECORD = "downloads.json"  # in the folder: a dictionary for each file


def read_record(folder: Path) -> dict[str, dict[str, object]]:
    """Return what is recorded of the files that were downloaded to a folder, by name."""
    try:
        record = json.loads((folder / RECORD).read_text())
    except (OSError, ValueError):
        return {}
    return (
        {name: entry for name, entry in record.items() if isinstance(entry, dict)} if isinstance(record, dict) else {}
    )


def write_record(folder: Path, name: str, entry: dict[str, object]) -> None:
    """Record a file. Only one process may do so at a time, see :func:`lock_path`. Raises OSError."""
    with atomic_write(folder / RECORD) as temporary:
        temporary.write_text(json.dumps({**read_record(folder), name: entry}, indent=2) + "\n")


def digests(path: Path) -> tuple[str, str]:
    """Return the MD5 and SHA-256 of a file."""
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            md5.update(block)
            sha256.update(block)
    return md5.hexdigest(), sha256.hexdigest()


def lock_path(folder: Path) -> Path:
    """Return the lock of downloads to a folder: a temporary file, as not every file system of data has locks."""
    digest = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    user = os.getuid() if hasattr(os, "getuid") else 0
    return Path(tempfile.gettempdir()) / f"hyperseg-download-{user}-{digest}.lock"
