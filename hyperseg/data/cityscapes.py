"""Cityscapes (Cordts et al., CVPR 2016): fine and coarse labels, from the published archives or extracted folders.

Arrange in one folder, the root, either the archives of https://www.cityscapes-dataset.com (a login is needed) as they
are, which are read without being unpacked:

    leftImg8bit_trainvaltest.zip  gtFine_trainvaltest.zip      fine labels: train 2975, val 500, test 1525
    leftImg8bit_trainextra.zip    gtCoarse.zip                 coarse labels: train, val, train_extra 19998

or the folders that they contain:

    leftImg8bit/SPLIT/CITY/NAME_leftImg8bit.png
    gtFine/SPLIT/CITY/NAME_gtFine_labelIds.png                 or NAME_gtFine_labelTrainIds.png
    gtCoarse/SPLIT/CITY/NAME_gtCoarse_labelIds.png

A folder is preferred to an archive. The labels are the 19 classes of the benchmark (train ids), made from label ids;
`labelTrainIds` files are read only without `labelIds` files. The published labels of the split test are void, and need
not be there.

Options: `labels`, "fine" or "coarse".
"""

import os
from pathlib import Path, PurePosixPath

import numpy as np

from hyperseg._files import printable
from hyperseg.data.dataset import Dataset, Item, LabelDecoder
from hyperseg.data.errors import DataError
from hyperseg.data.files import DataFile
from hyperseg.data.labels import CITYSCAPES
from hyperseg.data.listing import (
    archive_files,
    by_key,
    count_note,
    folders,
    image_files,
    require_labels,
    root_folder,
    splits_of,
    without_ending,
)
from hyperseg.data.masks import IGNORED, IndexDecoder, identity

TRAIN_ID_TO_ID = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""The label id of each train id, which is the class index."""

ID_TO_TRAIN_ID = {
    **dict.fromkeys((-1, *range(34), 255), IGNORED),
    **{label_id: train_id for train_id, label_id in enumerate(TRAIN_ID_TO_ID)},
}
"""The train id of each label id; 255 (ignored) for those that the benchmark does not score."""

SPLITS = {"train": 2975, "val": 500, "test": 1525, "train_extra": 19998}
_WEBSITE = "https://www.cityscapes-dataset.com/downloads (a login is needed)"


def train_id_to_id(labels: np.ndarray) -> np.ndarray:
    """Return the label ids that the benchmark's server expects for train ids (uint8 [H, W]); 255 becomes 0, unlabeled.

    Raises ValueError for a value that is no train id.
    """
    table = np.full(256, 255, np.uint8)
    table[: len(TRAIN_ID_TO_ID)] = TRAIN_ID_TO_ID
    table[IGNORED] = 0
    ids = table[labels]
    if (ids == 255).any():
        raise ValueError(f"the labels contain {int(labels[ids == 255][0])}, which is no train id (0 to 18, or 255)")
    return ids


def open_cityscapes(root: str | os.PathLike[str], split: str, labels: str = "fine") -> Dataset:
    """Open a split: "train", "val", "test", "train_extra" (coarse labels only), or several such as "train+val".

    Raises:
        DataError: files are missing; the message says what was looked for and where.
    """
    if labels not in ("fine", "coarse"):
        raise DataError(f"labels={printable(str(labels))!r} is not known; give fine or coarse")
    kind = "gtFine" if labels == "fine" else "gtCoarse"
    folder = root_folder(root)
    parts = splits_of(split, SPLITS, "cityscapes")
    if labels == "fine" and "train_extra" in parts:
        raise DataError("the split train_extra of cityscapes has coarse labels only; give the option labels=coarse")
    if labels == "coarse" and "test" in parts:
        raise DataError("the split test of cityscapes has no coarse labels; give the option labels=fine")
    images: dict[str, DataFile] = {}
    found: list[DataFile] = []
    image_places: dict[str, None] = {}  # sets in order
    label_places: dict[str, None] = {}
    notes = ""
    for part in parts:
        pictures, place = _files(folder, "leftImg8bit", part)
        named = by_key(pictures, without_ending("_leftImg8bit"), "images")
        if not named:
            raise DataError(f"{place} has no files {part}/CITY/NAME_leftImg8bit.png")
        images.update(named)
        image_places[place] = None
        if part != "test" or _has_files(folder, kind, part):
            masks, place = _files(folder, kind, part)
            found += masks
            label_places[place] = None
        notes += count_note(len(named), SPLITS[part], part)
    places = " and ".join({**image_places, **label_places})
    if parts == ["test"] and not found:
        items = [Item(name, image, None) for name, image in images.items()]
        form = f"Cityscapes without labels, in {places}{notes}"
        return Dataset("cityscapes", split, form, CITYSCAPES, items, IndexDecoder(ID_TO_TRAIN_ID))
    chosen, decoder, used = _labels(images, found, kind, " and ".join(label_places))
    if "test" in parts:
        notes += "; the label files of test are void, its labels are not published"
    form = f"Cityscapes, {labels} labels from {used} files, in {places}{notes}"
    items = [Item(name, image, chosen[name]) for name, image in images.items()]
    return Dataset("cityscapes", split, form, CITYSCAPES, items, decoder)


def _labels(
    images: dict[str, DataFile], found: list[DataFile], kind: str, place: str
) -> tuple[dict[str, DataFile], LabelDecoder, str]:
    """Return the label file of each image, how to decode them, and what they are called. Raises DataError."""
    by_id = by_key(found, without_ending(f"_{kind}_labelIds"), "label files")
    by_train_id = by_key(found, without_ending(f"_{kind}_labelTrainIds"), "label files")
    if by_train_id and not by_id:
        require_labels(images, by_train_id, f"CITY/NAME_{kind}_labelTrainIds.png in {place}")
        return by_train_id, identity(len(CITYSCAPES)), "labelTrainIds"
    if all(name in by_train_id for name in images) and not all(name in by_id for name in images):
        return by_train_id, identity(len(CITYSCAPES)), "labelTrainIds"
    require_labels(images, by_id, f"CITY/NAME_{kind}_labelIds.png in {place}")
    return by_id, IndexDecoder(ID_TO_TRAIN_ID), "labelIds"


_ARCHIVES = {
    "leftImg8bit": ("leftImg8bit_trainvaltest.zip", "leftImg8bit_trainextra.zip"),
    "gtFine": ("gtFine_trainvaltest.zip", "gtFine_trainvaltest.zip"),
    "gtCoarse": ("gtCoarse.zip", "gtCoarse.zip"),
}


def _files(root: Path, kind: str, split: str) -> tuple[list[DataFile], str]:
    """Return the files KIND/SPLIT/CITY/* of a folder or else of an archive, and the name of that. Raises DataError."""
    folder = root / kind / split
    if folder.is_dir():
        return [file for city in folders(folder) for file in image_files(city)], printable(root / kind)
    archive = root / _ARCHIVES[kind][split == "train_extra"]
    if archive.is_file():
        wanted = (kind, split)
        return [
            file for file in archive_files(archive) if PurePosixPath(file.member or "").parts[:2] == wanted
        ], printable(archive)
    raise DataError(
        f"there are no files of cityscapes for the split {split}: looked for the folder {printable(folder)} and the "
        f"archive {archive.name} in {printable(root)}{_hint(root, kind, split)}"
    )


def _has_files(root: Path, kind: str, split: str) -> bool:
    return (root / kind / split).is_dir() or (root / _ARCHIVES[kind][split == "train_extra"]).is_file()


def _hint(root: Path, kind: str, split: str) -> str:
    """Return what was found instead of KIND/SPLIT, and what to do."""
    deeper = [path for path in _below(root, 2) if path.name == kind and (path / split).is_dir() and path != root / kind]
    if deeper:
        return f"; there is {printable(deeper[0] / split)}: move {printable(deeper[0])} into {printable(root)}"
    if root.name in (kind, split):
        return f"; the root seems to be inside the data set: give the folder that contains {kind}"
    if (root / kind).is_dir():
        names = ", ".join(printable(path.name) for path in folders(root / kind)[:8]) or "nothing"
        return f"; {printable(root / kind)} has {names}"
    if kind == "gtFine" and ((root / "gtCoarse" / split).is_dir() or (root / "gtCoarse.zip").is_file()):
        return "; there are coarse labels (gtCoarse): give the option labels=coarse, or add gtFine_trainvaltest.zip"
    if kind == "gtCoarse" and ((root / "gtFine" / split).is_dir() or (root / "gtFine_trainvaltest.zip").is_file()):
        return "; there are fine labels (gtFine): give the option labels=fine, or add gtCoarse.zip"
    return f"; the archives are at {_WEBSITE}"


def _below(folder: Path, depth: int) -> list[Path]:
    """Return the folders below a folder, down to a depth, of those that can be listed."""
    try:
        found = folders(folder)
    except DataError:
        return []
    return found + [path for one in found if depth > 1 for path in _below(one, depth - 1)]
