"""Caches: a data set decoded once, as raw uint8 that is read through memory maps, without copies.

A cache is a folder: `images.bin` and `labels.bin` hold the pixels of all images ([H, W, 3] and [H, W]), without
anything between them; `index.npy` has a row (offset, height, width) per image, with the offset in pixels;
`manifest.json` identifies the source. `cache_writing.py` writes it.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from hyperseg._files import printable
from hyperseg._text import brief
from hyperseg.data.dataset import Dataset, Item
from hyperseg.data.errors import DataError
from hyperseg.data.files import DataFile
from hyperseg.data.labels import LabelSet

FORMAT = 1
IMAGES, LABELS, INDEX, MANIFEST = "images.bin", "labels.bin", "index.npy", "manifest.json"
JOURNAL, LOCK = "journal.jsonl", "lock"  # of one that is being written
INDEX_TYPE = np.dtype([("offset", "<i8"), ("height", "<i4"), ("width", "<i4")])
_AGAIN = "write it again: hyperseg data cache --overwrite, with the same --data, --root, --split and --output"


class CachedDataset(Dataset):
    """A data set whose images and labels come from a cache. The arrays are read-only views of memory maps.

    It can be pickled, and processes on one machine share its memory.

    Args:
        folder: of the cache.
        source: the data set that was cached; the cache is refused if a file, the label map or the list of images has
            changed since. None: the originals need not be there, and nothing is compared.

    Raises:
        DataError: the folder is no cache, is incomplete, or `source` has changed.
    """

    def __init__(self, folder: str | Path, source: Dataset | None = None) -> None:
        self.folder = Path(folder)
        document = read_manifest(self.folder)
        stored = document["source"]
        if source is not None and (reason := changes(stored, source.manifest())) is not None:
            raise DataError(f"the cache {printable(self.folder)} is out of date: {reason}; {_AGAIN}")
        self._manifest = stored
        self._rows = _read_index(self.folder, document)
        self._maps: tuple[np.ndarray, np.ndarray] | None = None
        items = [
            Item(name, DataFile(*image), None if label is None else DataFile(*label))
            for (name, _, _), (image, label) in zip(stored["files"], document["paths"], strict=True)
        ]
        super().__init__(
            stored["data"], stored["split"], stored["form"], _label_set(stored["label_set"]), items, _Decoded(stored)
        )

    def image(self, index: int) -> np.ndarray:
        """Return an image as uint8 [H, W, 3] RGB, a read-only view."""
        offset, height, width = self._rows[index].tolist()
        pixels = self._memory()[0][3 * offset : 3 * (offset + height * width)]
        return pixels.reshape(height, width, 3)

    def labels(self, index: int) -> np.ndarray:
        """Return labels as uint8 [H, W], a read-only view. Raises DataError if the image has none."""
        if self.items[index].label is None:
            return super().labels(index)
        offset, height, width = self._rows[index].tolist()
        return self._memory()[1][offset : offset + height * width].reshape(height, width)

    def subset(self, indices: Iterable[int]) -> "CachedDataset":
        """Return a data set of some of the images, which come from the cache too."""
        chosen = list(indices)
        subset = CachedDataset.__new__(CachedDataset)
        subset.__dict__.update(self.__dict__)
        order = sorted(chosen, key=lambda index: self.items[index].name)
        items = [self.items[index] for index in order]
        Dataset.__init__(subset, self.name, self.split, self.form, self.label_set, items, self.decoder)
        subset._rows = self._rows[order]
        subset._manifest = {**self._manifest, "files": [self._manifest["files"][index] for index in order]}
        return subset

    def manifest(self) -> dict[str, Any]:
        """Return the manifest of the source when it was cached."""
        return self._manifest

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": None}  # a pickled map would be a copy of the data

    def _memory(self) -> tuple[np.ndarray, np.ndarray]:
        if self._maps is None:
            self._maps = _map(self.folder / IMAGES), _map(self.folder / LABELS)
        return self._maps


class _Decoded:
    """Stands for the decoder of a cached data set, whose labels are decoded already."""

    def __init__(self, manifest: dict[str, Any]) -> None:
        self._description = manifest["labels"]

    def __call__(self, data: bytes, name: str) -> np.ndarray:
        raise DataError(f"{name} is not decoded again: its labels are in the cache")

    def description(self) -> dict[str, Any]:
        return self._description


def changes(old: dict[str, Any], new: dict[str, Any]) -> str | None:
    """Return what distinguishes the manifest of a cache from that of its source now; None if nothing does."""
    old, new = (json.loads(json.dumps(manifest)) for manifest in (old, new))
    for key in ("data", "split"):
        if old[key] != new[key]:
            return f"it holds {old['data']} {old['split']}, but {new['data']} {new['split']} was asked for"
    if old["label_set"] != new["label_set"]:
        return "the classes of the data set have changed (their names, number, colours or the ignored index)"
    if old["labels"] != new["labels"]:
        return "the way that label files become classes has changed (the label map, colours or ignored values)"
    before, now = ({name: rest for name, *rest in manifest["files"]} for manifest in (old, new))
    if added := [name for name in now if name not in before]:
        return f"{_some(added)} not in it"
    if removed := [name for name in before if name not in now]:
        return f"{_some(removed)} no longer in the data set"
    if changed := [name for name in now if now[name] != before[name]]:
        return f"{_some(changed)} changed since it was written (size, time or checksum of the image or label file)"
    return None


def _some(names: list[str]) -> str:
    listed = ", ".join(map(printable, names[:3]))
    if len(names) == 1:
        return f"{listed} is" if names else ""
    return f"{len(names)} images ({listed}{', ...' if len(names) > 3 else ''}) are"


def is_cache(folder: Path) -> bool:
    """Return whether a folder is, or was to be, a cache: nothing but the files of one."""
    try:
        names = {path.name for path in folder.iterdir()}
    except OSError:
        return False
    return MANIFEST in names and names <= {IMAGES, LABELS, INDEX, MANIFEST, JOURNAL, LOCK}


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a complete cache. Raises DataError."""
    shown = printable(folder)
    try:
        document = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"there is no cache in {shown} (no {MANIFEST}); write one with hyperseg data cache") from None
    except (OSError, ValueError) as error:
        raise DataError(f"the cache {shown} cannot be read ({brief(error)}); {_AGAIN}") from None
    found = document.get("format") if isinstance(document, dict) else None
    if found != FORMAT:
        raise DataError(f"the cache {shown} has format {found}, but this version reads format {FORMAT}; {_AGAIN}")
    for name, expected in document["sizes"].items():
        try:
            size = (folder / name).stat().st_size
        except OSError as error:
            raise DataError(
                f"the cache {shown} is incomplete: {name} cannot be read ({brief(error)}); {_AGAIN}"
            ) from None
        if size != expected:
            raise DataError(f"the cache {shown} is damaged: {name} has {size} bytes instead of {expected}; {_AGAIN}")
    return document


def _read_index(folder: Path, document: dict[str, Any]) -> np.ndarray:
    try:
        rows = np.load(folder / INDEX, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"the cache {printable(folder)} cannot be read ({brief(error)}); {_AGAIN}") from None
    if rows.dtype != INDEX_TYPE or rows.shape != (len(document["source"]["files"]),):
        raise DataError(f"the cache {printable(folder)} is damaged: {INDEX} does not fit {MANIFEST}; {_AGAIN}")
    return rows


def _label_set(values: dict[str, Any]) -> LabelSet:
    colors = tuple(tuple(color) for color in values["colors"])
    return LabelSet(**{**values, "classes": tuple(values["classes"]), "colors": colors})


def _map(path: Path) -> np.ndarray:
    try:
        if path.stat().st_size == 0:  # an empty file cannot be mapped
            return np.empty(0, np.uint8)
        return np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
    except OSError as error:
        raise DataError(f"{printable(path)} cannot be read ({brief(error)}); {_AGAIN}") from None
