"""Writing of caches: resumable after any end, never half a cache under the name of a whole one.

All is written to the folder `NAME.partial`, which is renamed when it is complete. `cache_files.py` says what of it the
next run keeps.
"""

import contextlib
import io
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from hyperseg._files import file_lock, printable
from hyperseg._text import brief
from hyperseg.data.dataset import Dataset
from hyperseg.data.errors import DataError
from hyperseg.data.pipeline.cache import (
    IMAGES,
    JOURNAL,
    LABELS,
    LOCK,
    CachedDataset,
    is_cache,
)
from hyperseg.data.pipeline.cache_files import CacheWriter

_PROBED = 16  # images whose sizes the free space is estimated from


@dataclass(frozen=True)
class CacheReport:
    """What there is after :func:`write_cache`: images, how many of them an earlier run had written, bytes in all."""

    images: int
    kept: int
    bytes: int


def write_cache(
    dataset: Dataset,
    folder: str | os.PathLike[str],
    workers: int | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> CacheReport:
    """Write the cache of a data set, or go on with one that was begun.

    Args:
        folder: becomes the cache; a cache of the same data that is there already is left alone.
        workers: threads that decode; None: one per CPU that this process may use.
        overwrite: replace a cache of other data, or of an older state of this data.
        progress: called with the numbers of images that are done and of all.

    Raises:
        DataError: a source cannot be read, the disk is full, the folder cannot be written to or holds something else.
            What is complete is kept in `folder`.partial for the next run; if nothing is, that is removed.
    """
    folder = Path(folder).absolute()
    partial = folder.with_name(folder.name + ".partial")
    manifest = dataset.manifest()
    if (current := _existing(folder, dataset, overwrite)) is not None:
        return current
    try:
        partial.mkdir(parents=True, exist_ok=True)
        with _locked(partial):
            with _removed_if_empty(partial), CacheWriter(dataset, manifest, partial) as writer:
                kept = writer.resume()
                _check_space(dataset, folder, writer)
                progress(kept, len(dataset))
                writer.write_missing(workers or _cpus(), progress)
                total = writer.finish()
            _rename(partial, folder)
    except OSError as error:
        kept_in = "" if _is_empty(partial) else f": what is complete is kept in {printable(partial)}"
        raise DataError(
            f"the cache {printable(folder)} cannot be written ({error.strerror or brief(error)}); make place or give "
            f"another folder, and repeat the command{kept_in}"
        ) from None
    return CacheReport(len(dataset), kept, total)


def _existing(folder: Path, dataset: Dataset, overwrite: bool) -> CacheReport | None:
    """Return the report of a cache that is up to date. Raises DataError for a folder that must not be replaced."""
    if not os.path.lexists(folder) or (folder.is_dir() and not any(folder.iterdir())):
        return None
    if not is_cache(folder):
        raise DataError(f"{printable(folder)} is not empty and no cache; give the name of a new folder")
    try:
        CachedDataset(folder, dataset)
    except DataError:
        if not overwrite:
            raise
        return None
    return CacheReport(len(dataset), len(dataset), sum(path.stat().st_size for path in folder.iterdir()))


@contextlib.contextmanager
def _locked(partial: Path) -> Iterator[None]:
    try:
        import fcntl  # noqa: F401 - only whether there are locks
    except ImportError:
        yield
        return
    with file_lock(partial / LOCK, patience=0) as held:
        if not held:
            raise DataError(
                f"{printable(partial)} cannot be locked: another process writes it, or its file system has no locks; "
                "wait for the process, or give another folder"
            )
        yield


@contextlib.contextmanager
def _removed_if_empty(partial: Path) -> Iterator[None]:
    """After an error, remove the partial folder if no image in it is complete."""
    try:
        yield
    except BaseException:
        if _is_empty(partial):
            with contextlib.suppress(OSError):  # it may hold files of others
                for name in (IMAGES, LABELS, JOURNAL, LOCK):
                    (partial / name).unlink(missing_ok=True)
                partial.rmdir()
        raise


def _is_empty(partial: Path) -> bool:
    """Return whether the journal of a partial folder, whose first line is a header, names no image."""
    try:
        return (partial / JOURNAL).read_bytes().count(b"\n") <= 1
    except FileNotFoundError:
        return True
    except OSError:
        return not partial.is_dir()


def _check_space(dataset: Dataset, folder: Path, writer: CacheWriter) -> None:
    """Raise DataError if the images that are missing do not fit on the disk."""
    missing = writer.missing
    sizes = [size for index in missing[:: max(1, len(missing) // _PROBED)] if (size := _pixels(dataset, index))]
    if missing and not sizes:  # images that are computed, or cannot be read
        with contextlib.suppress(DataError):
            height, width, _ = dataset.image(missing[0]).shape
            sizes = [height * width]
    if not sizes:
        return
    needed = sum(sizes) / len(sizes) * len(missing) * (4 if writer.with_labels else 3)
    free = shutil.disk_usage(writer.partial).free
    if needed > free:
        raise DataError(
            f"the cache needs {_gigabytes(needed)} more, but the disk of {printable(folder)} has {_gigabytes(free)} "
            "free; make place, or give another folder"
        )


def _pixels(dataset: Dataset, index: int) -> int:
    """Return how many pixels the header of an image states; 0 if it cannot be read, which is reported later."""
    try:
        with Image.open(io.BytesIO(dataset.items[index].image.read())) as image:
            return image.width * image.height
    except Exception:  # decoders raise nearly anything on a damaged file
        return 0


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size > 5e6 else f"{size / 1e6:.3f} MB"


def _rename(partial: Path, folder: Path) -> None:
    """Turn the partial folder into the cache, in place of an older one. A kill in between leaves a complete journal."""
    old = folder.with_name(folder.name + ".old")
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(folder, old)
    os.replace(partial, folder)
    for name in (JOURNAL, LOCK):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(old, ignore_errors=True)


def _cpus() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1
