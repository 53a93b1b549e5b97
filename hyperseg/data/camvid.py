"""CamVid (Brostow et al., 2009) in its published forms, each a data set of its own, as their labels and splits differ.

camvid: as SegNet published it, 480x360, 11 classes, 367/101/233 images. The labels are indices, and 11 is ignored.

    train.txt val.txt test.txt         optional; "IMAGE LABEL" a line, with or without the prefix /SegNet/CamVid/
    train/NAME.png  trainannot/NAME.png    and so on; images may be JPEG files, also where the list says .png

camvid-kaggle: the folders of Kaggle, 960x720, with the 12 classes of the HyperSeg paper: Void is the last, and pixels
of other colours are ignored, as in the official code. camvid-32: all 32 classes, Void included; the same folders, or
the authors' archives, which have no splits (give the split "all") unless there are lists of names.

    train/NAME.png  train_labels/NAME_L.png      and so on for val and test; class_dict.csv, optional, with name,r,g,b
    701_StillsRaw_full/NAME.png  LabeledApproved_full/NAME_L.png     train.txt and so on, optional, a name a line

Splits: train, val, test, and several joined, such as train+val, on which the paper's networks were trained.
Options of camvid-kaggle and camvid-32: `void`, "class" or "ignore". Of camvid-32: `unknown`, "refuse" or "ignore", for
colours that are not in the table.
"""

import csv
import os
from dataclasses import replace
from pathlib import Path, PurePosixPath

from hyperseg._files import printable
from hyperseg._text import brief
from hyperseg.data.dataset import Dataset, Item
from hyperseg.data.errors import DataError
from hyperseg.data.files import DataFile
from hyperseg.data.labels import CAMVID, CAMVID_11, CAMVID_32, LabelSet
from hyperseg.data.listing import (
    by_key,
    count_note,
    first_of,
    image_files,
    lines,
    require_labels,
    root_folder,
    splits_of,
    without_ending,
)
from hyperseg.data.masks import IGNORED, ColorDecoder, identity
from hyperseg.images import kinds

SEGNET_COUNTS = {"train": 367, "val": 101, "test": 233}
KAGGLE_COUNTS = {"train": 369, "val": 100, "test": 232}
_SPLITS = ("train", "val", "test")
_STILLS = ("701_StillsRaw_full", "LabeledApproved_full")
_FORMS = {
    "camvid": "lists such as train.txt, or folders train and trainannot",
    "camvid-kaggle": "folders train and train_labels",
    "camvid-32": f"folders train and train_labels, or {_STILLS[0]} and {_STILLS[1]}",
}


def open_camvid(root: str | os.PathLike[str], split: str) -> Dataset:
    """Open the form that SegNet published. Raises DataError; if another form is there, the message says its name."""
    folder = root_folder(root)
    parts = splits_of(split, _SPLITS, "camvid")
    items: list[Item] = []
    notes = ""
    ways: dict[str, None] = {}  # a set in order
    for part in parts:
        if (folder / f"{part}.txt").is_file() and not _is_stills(folder):
            found, way = _from_list(folder, folder / f"{part}.txt"), "lists"
        elif (folder / part).is_dir() and (folder / f"{part}annot").is_dir():
            pictures, labels = (image_files(folder / name) for name in (part, f"{part}annot"))
            found, way = _pairs(pictures, labels, "", folder / f"{part}annot"), "folders"
        else:
            raise DataError(_not_found("camvid", folder, part))
        items += found
        ways[way] = None
        notes += count_note(len(found), SEGNET_COUNTS[part], part)
    form = f"CamVid as SegNet published it, 11 classes, from the {' and '.join(ways)} in {printable(folder)}{notes}"
    decoder = identity(len(CAMVID_11), ignored=(len(CAMVID_11), IGNORED))
    return Dataset("camvid", split, form, CAMVID_11, items, decoder)


def open_camvid_kaggle(root: str | os.PathLike[str], split: str, void: str = "class") -> Dataset:
    """Open the folders of Kaggle with the paper's 12 classes, or 11 with void="ignore". Raises DataError."""
    folder = root_folder(root)
    items, notes = _kaggle(folder, splits_of(split, _SPLITS, "camvid-kaggle"), "camvid-kaggle")
    labels, colors = _with_void(CAMVID, void)
    form = (
        f"CamVid in the folders of Kaggle, {len(labels)} classes as in the paper"
        f"{', Void included' if len(labels) == len(CAMVID) else ''}, in {printable(folder)}{notes}"
    )
    return Dataset("camvid-kaggle", split, form, labels, items, ColorDecoder(colors, unknown=IGNORED))


def open_camvid_32(root: str | os.PathLike[str], split: str, void: str = "class", unknown: str = "refuse") -> Dataset:
    """Open all 32 classes, from the folders of Kaggle or the authors' archives. Raises DataError."""
    if unknown not in ("refuse", "ignore"):
        raise DataError(f"unknown={printable(str(unknown))!r} is not known; give refuse or ignore")
    folder = root_folder(root)
    if _is_stills(folder):
        items, notes = _stills(folder, split)
        place = f"from {_STILLS[0]} and {_STILLS[1]}"
    else:
        items, notes = _kaggle(folder, splits_of(split, _SPLITS, "camvid-32"), "camvid-32")
        place = "in the folders of Kaggle"
    table = _class_dict(folder / "class_dict.csv") if (folder / "class_dict.csv").is_file() else CAMVID_32
    labels, colors = _with_void(table, void)
    form = f"CamVid {place}, {len(labels)} classes, in {printable(folder)}{notes}"
    decoder = ColorDecoder(colors, unknown=IGNORED if unknown == "ignore" else None)
    return Dataset("camvid-32", split, form, labels, items, decoder)


def _kaggle(root: Path, parts: list[str], name: str) -> tuple[list[Item], str]:
    items: list[Item] = []
    notes = ""
    for part in parts:
        labels = root / f"{part}_labels"
        if not (root / part).is_dir() or not labels.is_dir():
            raise DataError(_not_found(name, root, part))
        found = _pairs(image_files(root / part), image_files(labels), "_L", labels)
        items += found
        notes += count_note(len(found), KAGGLE_COUNTS[part], part)
    return items, notes


def _stills(root: Path, split: str) -> tuple[list[Item], str]:
    """Return the items of the authors' archives: all, or those in the list of a split."""
    images, labels = (root / name for name in _STILLS)
    items = _pairs(image_files(images), image_files(labels), "_L", labels)
    if split == "all":
        return items, count_note(len(items), 701)
    lists = [part for part in _SPLITS if (root / f"{part}.txt").is_file()]
    if not lists:
        raise DataError(
            f"{printable(root)} has all images of CamVid without splits; give the split all, or add lists of names, "
            "such as train.txt"
        )
    named = {item.name: item for item in items}
    chosen = []
    for part in splits_of(split, ["all", *lists], "camvid-32"):
        names = [PurePosixPath(line.split()[0]).stem for line in lines(root / f"{part}.txt")]
        if missing := [name for name in names if name not in named]:
            raise DataError(
                f"{printable(root / f'{part}.txt')} names {first_of(missing, 'image')} not in {images.name}"
            )
        chosen += [named[name] for name in names]
    return chosen, ""


def _from_list(root: Path, path: Path) -> list[Item]:
    """Return the items of a list of SegNet: image and label on each line."""
    items, missing = [], []
    for number, line in enumerate(lines(path), 1):
        fields = line.split()
        if len(fields) != 2:
            raise DataError(f"line {number} of {printable(path)} is {printable(line)!r}; expected an image and a label")
        image, label = (_listed(root, field) for field in fields)
        if image is None or label is None:
            missing.append(printable(fields[0] if image is None else fields[1]))
        else:
            items.append(Item(image.stem, image, label))
    if missing:
        raise DataError(
            f"missing: {first_of(missing, 'file')} of the list {printable(path)}; looked for them in "
            f"{printable(root)}, with any suffix and without the first folders of the listed path"
        )
    return items


def _listed(root: Path, text: str) -> DataFile | None:
    """Return the file that a list means: the listed path without as few first folders as possible."""
    parts = [part for part in PurePosixPath(text.replace("\\", "/")).parts if part not in ("/", "..")]
    for first in range(len(parts)):
        path = root.joinpath(*parts[first:])
        if path.is_file():
            return DataFile(str(path))
        if path.parent.is_dir():
            for suffix in (".png", ".jpg", ".jpeg", *kinds.readable_suffixes()):
                if path.with_suffix(suffix).is_file():
                    return DataFile(str(path.with_suffix(suffix)))
    return None


def _pairs(images: list[DataFile], labels: list[DataFile], ending: str, folder: Path) -> list[Item]:
    """Return the images with their labels, NAME and NAME + ending. Raises DataError if an image has none."""
    named = by_key(images, lambda file: file.stem, "images")
    found = by_key(labels, without_ending(ending), "label files")
    require_labels(named, found, f"NAME{ending} in {printable(folder)}")
    return [Item(name, image, found[name]) for name, image in named.items()]


def _with_void(table: LabelSet, void: str) -> tuple[LabelSet, dict[tuple[int, int, int], int]]:
    """Return the label set and the colours' classes, with Void as a class or ignored. Raises DataError."""
    if void not in ("class", "ignore"):
        raise DataError(f"void={printable(str(void))!r} is not known; give class or ignore")
    colors = {color: index for index, color in enumerate(table.colors)}
    if void == "class" or "Void" not in table.classes:
        return table, colors
    rows = [(name, color) for name, color in zip(table.classes, table.colors, strict=True) if name != "Void"]
    names, kept = zip(*rows, strict=True)
    colors = {color: kept.index(color) if color in kept else IGNORED for color in table.colors}
    return replace(table, name=f"{table.name} without Void", classes=names, colors=kept), colors


def _class_dict(path: Path) -> LabelSet:
    """Return the label set of a file with the columns name, r, g, b. Raises DataError."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = [[field.strip() for field in row] for row in csv.reader(file) if row]
        if [field.lower() for field in rows[0]] != ["name", "r", "g", "b"]:
            raise ValueError("its first line is not name,r,g,b")
        colors = [(int(r), int(g), int(b)) for _, r, g, b in rows[1:]]
        if len(set(colors)) < len(colors):
            raise ValueError("two classes have one colour")
        return LabelSet("camvid-32", tuple(row[0] for row in rows[1:]), tuple(colors))
    except (OSError, ValueError, IndexError, csv.Error) as error:
        text = f"{printable(path)} cannot be used ({brief(error)}); expected lines such as Sky,128,128,128"
        raise DataError(text) from None


def _is_stills(root: Path) -> bool:
    return all((root / name).is_dir() for name in _STILLS)


def _not_found(name: str, root: Path, part: str) -> str:
    """Return the message that a form is not there, and which form is."""
    others = []
    if (root / f"{part}annot").is_dir() or (root / f"{part}.txt").is_file():
        others.append("camvid")
    if (root / f"{part}_labels").is_dir():
        others += ["camvid-kaggle", "camvid-32"]
    if _is_stills(root):
        others.append("camvid-32")
    others = [other for other in dict.fromkeys(others) if other != name]
    text = f"there are no files of {name} for the split {part}: looked for {_FORMS[name]} in {printable(root)}"
    if others:
        return f"{text}; found those of {' and '.join(others)}: give that name"
    return text
