"""Which splits of a data set are there."""

import contextlib
import os
from pathlib import Path
from typing import Any

from hyperseg._files import printable
from hyperseg.data.errors import DataError, system_errors
from hyperseg.data.listing import folders, root_folder
from hyperseg.data.registry import WITHOUT_FILES, open_dataset
from hyperseg.data.voc import find_voc, split_lists

_USUAL = ("train", "val", "test")


def available_splits(name: str, root: str | os.PathLike[str], **options: Any) -> tuple[str, ...]:
    """Return the splits of a data set that have files, without those that are unions of others.

    They need not be complete: opening one may still fail.

    Args:
        name: see :func:`hyperseg.data.registry.open_dataset`.
        root: the folder of the data set.
        options: of the data set.

    Raises:
        DataError: there is none.
    """
    if name in WITHOUT_FILES:
        return _USUAL
    folder = root_folder(root)
    found: list[str] = []
    with contextlib.suppress(DataError), system_errors(folder):
        found = _found(name, folder)
    if not found:
        open_dataset(name, folder, "val", **options)  # its error says what was looked for
        raise DataError(f"no split of {name} was found in {printable(folder)}; name one with --split")
    return tuple(found)


def _found(name: str, folder: Path) -> list[str]:
    if name == "folder":
        found = _of_folder(folder)
    elif name == "cityscapes":
        found = [split for split in (*_USUAL, "train_extra") if _has_cityscapes(folder, split)]
    elif name == "voc":
        lists = split_lists(find_voc(folder))
        found = ["train_aug" if "train_aug" in lists else "train", *_USUAL[1:]]  # train is a part of train_aug
        found = [split for split in found if split in lists]
    else:
        found = [split for split in _USUAL if (folder / split).is_dir() or (folder / f"{split}.txt").is_file()]
        if not found and name == "camvid-32":
            found = ["all"]
    return found


def _of_folder(root: Path) -> list[str]:
    """Return the folders of images, or the splits of an export; see `exports.py`."""
    if (root / "images").is_dir():
        found = [path.name for path in folders(root / "images")]
    elif (root / "labelmap.txt").is_file():
        found = [path.stem for path in (root / "ImageSets" / "Segmentation").glob("*.txt")]
    elif (root / "class_names.txt").is_file():
        found = ["all"]
    elif (root / "meta.json").is_file():
        found = [path.name for path in folders(root) if (path / "img").is_dir()]
    else:
        marks = ("labelmap.txt", "class_names.txt", "meta.json")
        found = [path.name for path in folders(root) if any((path / mark).is_file() for mark in marks)]
    return sorted(found, key=lambda split: (_USUAL.index(split) if split in _USUAL else len(_USUAL), split))


def _has_cityscapes(root: Path, split: str) -> bool:
    archive = "leftImg8bit_trainextra.zip" if split == "train_extra" else "leftImg8bit_trainvaltest.zip"
    return (root / "leftImg8bit" / split).is_dir() or (root / archive).is_file()
