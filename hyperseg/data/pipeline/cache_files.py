"""The files of a cache that is being written, and their journal: what of an earlier run is kept, and what is added.

The journal has a line per image whose pixels are written, with their checksum. A run keeps the images of the journal,
up to the first whose pixels do not have that checksum or whose files have changed, and appends the others.
"""

import contextlib
import json
import os
import zlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from hyperseg._files import printable
from hyperseg.data.dataset import Dataset, manifest_hash
from hyperseg.data.errors import DataError
from hyperseg.data.pipeline.cache import FORMAT, IMAGES, INDEX, INDEX_TYPE, JOURNAL, LABELS, MANIFEST


@dataclass(frozen=True)
class Entry:
    """A line of the journal: the image, fingerprints of its files, and its pixels' place, size and checksum."""

    source: list[Any]
    offset: int
    height: int
    width: int
    checksum: int

    @property
    def end(self) -> int:
        return self.offset + self.height * self.width


class CacheWriter:
    """Appends images to the partial cache: in the order of the data set, those that failed in an earlier run last."""

    def __init__(self, dataset: Dataset, manifest: dict[str, Any], partial: Path) -> None:
        self.dataset, self.manifest, self.partial = dataset, manifest, partial
        self.with_labels = any(item.label is not None for item in dataset.items)
        # What decides the pixels besides the files, which each entry has by itself.
        decoding = {key: manifest[key] for key in ("data", "split", "label_set", "labels")}
        self.header = {"format": FORMAT, "decoding": manifest_hash(decoding), "labels": self.with_labels}
        self.entries: list[Entry] = []
        self.files: list[BinaryIO] = []

    def __enter__(self) -> "CacheWriter":
        for name in (IMAGES, LABELS, JOURNAL):
            self.files.append(open(self.partial / name, "ab+", buffering=0))
        return self

    def __exit__(self, *error: object) -> None:
        for file in self.files:
            file.close()

    @property
    def end(self) -> int:
        """Pixels that are written."""
        return self.entries[-1].end if self.entries else 0

    def resume(self) -> int:
        """Keep what is complete of an earlier run, remove the rest; return the number of images kept."""
        images, labels, journal = self.files
        lines = _journal_lines(journal)
        sources = {source[0]: source for source in json.loads(json.dumps(self.manifest["files"]))}
        if lines and lines[0] == self.header:
            with contextlib.suppress(TypeError):  # a line that is no entry: after a power failure
                for entry in (Entry(**line) for line in lines[1:]):
                    if entry.source != sources.get(entry.source[0]) or not self._intact(entry):
                        break
                    self.entries.append(entry)
        images.truncate(3 * self.end)
        labels.truncate(self.end if self.with_labels else 0)
        journal.truncate(0)
        text = "".join(json.dumps(line) + "\n" for line in [self.header, *map(vars, self.entries)])
        _write(journal, text.encode())
        return len(self.entries)

    def _intact(self, entry: Entry) -> bool:
        """Return whether the pixels are as they were written: after a power failure they may not be."""
        images, labels, _ = self.files
        size = entry.end - entry.offset
        checksum = zlib.crc32(_read(images, 3 * entry.offset, 3 * size))
        if self.with_labels:
            checksum = zlib.crc32(_read(labels, entry.offset, size), checksum)
        return entry.offset == self.end and checksum == entry.checksum

    @property
    def missing(self) -> list[int]:
        """Indices of the images that are not written."""
        written = {entry.source[0] for entry in self.entries}
        return [index for index, item in enumerate(self.dataset.items) if item.name not in written]

    def write_missing(self, workers: int, progress: Callable[[int, int], None]) -> None:
        """Decode and append all images that are missing. Raises DataError, at the end, if some cannot be read."""
        missing, total, errors = self.missing, len(self.dataset), []
        with ThreadPoolExecutor(workers) as pool:  # Pillow decodes, and zlib unpacks, without Python's lock
            pending: deque[Future[tuple[np.ndarray, np.ndarray | None]]] = deque()
            ahead = iter(missing)
            try:
                for index in missing:
                    for following in islice(ahead, workers + 2 - len(pending)):
                        pending.append(pool.submit(self._decode, following))
                    try:
                        self._append(index, *pending.popleft().result())
                    except DataError as error:
                        errors.append(str(error))
                    progress(len(self.entries), total)
            finally:
                for future in pending:
                    future.cancel()
        if errors:
            count = "one image" if len(errors) == 1 else f"{len(errors)} images"
            more = f"; and {len(errors) - 3} more" if len(errors) > 3 else ""
            others = f": the other {len(self.entries)} are kept in {printable(self.partial)}" if self.entries else ""
            raise DataError(
                f"there is no cache yet, because {count} of {total} cannot be used: {'; '.join(errors[:3])}{more}. "
                f"Mend them, or remove them from the data set, and repeat the command{others}"
            )

    def _decode(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        if self.dataset.items[index].label is not None:
            return self.dataset.sample(index)
        image = self.dataset.image(index)
        if not self.with_labels:
            return image, None
        return image, np.full(image.shape[:2], self.dataset.label_set.ignore_index, np.uint8)

    def _append(self, index: int, image: np.ndarray, labels: np.ndarray | None) -> None:
        pixels = np.ascontiguousarray(image).data.cast("B")
        _write(self.files[0], pixels)
        checksum = zlib.crc32(pixels)
        if labels is not None:
            classes = np.ascontiguousarray(labels).data.cast("B")
            _write(self.files[1], classes)
            checksum = zlib.crc32(classes, checksum)
        entry = Entry(self.manifest["files"][index], self.end, image.shape[0], image.shape[1], checksum)
        _write(self.files[2], (json.dumps(vars(entry)) + "\n").encode())
        self.entries.append(entry)

    def finish(self) -> int:
        """Write the index and the manifest; return the size of the whole."""
        places = {e.source[0]: (e.offset, e.height, e.width) for e in self.entries}
        rows = np.array([places[item.name] for item in self.dataset.items], dtype=INDEX_TYPE)
        np.save(self.partial / INDEX, rows, allow_pickle=False)
        sizes = {name: (self.partial / name).stat().st_size for name in (IMAGES, LABELS, INDEX)}
        paths = [
            [[item.image.path, item.image.member], item.label and [item.label.path, item.label.member]]
            for item in self.dataset.items
        ]
        document = {"format": FORMAT, "sizes": sizes, "source": self.manifest, "paths": paths}
        text = json.dumps(document)
        (self.partial / MANIFEST).write_text(text, encoding="utf-8")
        for name in (IMAGES, LABELS, INDEX, MANIFEST):
            with open(self.partial / name, "rb+") as file:
                os.fsync(file.fileno())
        return sum(sizes.values()) + len(text)


def _journal_lines(journal: BinaryIO) -> list[dict[str, Any]]:
    journal.seek(0)
    lines = []
    with contextlib.suppress(ValueError):  # a power failure may leave anything
        for line in journal.read().split(b"\n")[:-1]:  # after the last newline: nothing, or a line that was cut off
            lines.append(json.loads(line))
    return lines


def _write(file: BinaryIO, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _read(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    parts = []
    while size > 0 and (part := file.read(min(size, 2**30))):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
