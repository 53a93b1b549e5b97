"""PASCAL VOC 2012 (Everingham et al.), and with the labels of SBD (Hariharan et al., 2011) the split train_aug.

The root has `VOCdevkit/VOC2012`, as the published archive has it, or is one of these two folders:

    JPEGImages/NAME.jpg
    SegmentationClass/NAME.png                 palette images of 21 classes, 255 is ignored
    SegmentationClassAug/NAME.png              of train_aug: these labels and those of SBD, 12,031 files
    ImageSets/Segmentation/train.txt           a name a line; and val, trainval, test, train_aug

Splits: train 1464, val 1449, trainval 2913, train_aug 10582, test (no labels), and any other name that has a list, or
several joined by "+". A list may also be in `ImageSets/SegmentationAug`, `list` or the folder itself, be called
trainaug.txt, and have lines such as `/JPEGImages/NAME.jpg /SegmentationClassAug/NAME.png`, with the second file or not.

`hyperseg data download voc` fetches all of this; see `download.py`.
"""

import os
from pathlib import Path, PurePosixPath

from hyperseg._files import printable
from hyperseg.data.dataset import Dataset, Item
from hyperseg.data.errors import DataError
from hyperseg.data.files import DataFile
from hyperseg.data.labels import VOC
from hyperseg.data.listing import count_note, first_of, lines, root_folder, splits_of
from hyperseg.data.masks import identity

COUNTS = {"train": 1464, "val": 1449, "trainval": 2913, "train_aug": 10582}
_LIST_FOLDERS = ("ImageSets/Segmentation", "ImageSets/SegmentationAug", "list", "lists", ".")
_LIST_NAMES = {"train_aug": ("train_aug", "trainaug", "train-aug")}
_CLASS, _AUG = "SegmentationClass", "SegmentationClassAug"


def open_voc(root: str | os.PathLike[str], split: str) -> Dataset:
    """Open a split, as a list names its images. Raises DataError: the list, or a file that it names, is missing."""
    base = find_voc(root_folder(root))
    lists = split_lists(base)
    items: dict[str, Item] = {}
    notes = ""
    used: dict[str, None] = {}  # a set in order
    for part in splits_of(split, [*COUNTS, "test", *sorted(set(lists) - {*COUNTS, "test"})], "voc"):
        if part not in lists:
            found = ", ".join(lists) or "none"
            hint = "; `hyperseg data download voc` fetches that of train_aug" if part == "train_aug" else ""
            raise DataError(
                f"there is no list of the split {part}: looked for {part}.txt in {', '.join(_LIST_FOLDERS[:4])} and "
                f"the folder {printable(base)} itself; the lists there are: {found}{hint}"
            )
        found_items, labels = _items(base, lists[part], part)
        items.update((item.name, item) for item in found_items)  # train is a part of train_aug
        used[labels] = None
        notes += count_note(len(found_items), COUNTS.get(part), part)
    form = f"PASCAL VOC 2012, 21 classes, {' and '.join(used)}, in {printable(base)}{notes}"
    return Dataset("voc", split, form, VOC, items.values(), identity(len(VOC)))


def find_voc(root: Path) -> Path:
    """Return the folder VOC2012 below a root, or the root itself. Raises DataError."""
    for base in (root / "VOCdevkit" / "VOC2012", root / "VOC2012", root):
        if (base / "JPEGImages").is_dir():
            return base
    raise DataError(
        f"there is no VOC 2012: looked for VOCdevkit/VOC2012/JPEGImages, VOC2012/JPEGImages and JPEGImages in "
        f"{printable(root)}; `hyperseg data download voc` fetches it"
    )


def split_lists(base: Path) -> dict[str, Path]:
    """Return the lists of splits by name, the first of each."""
    found: dict[str, Path] = {}
    for folder in _LIST_FOLDERS:
        for path in sorted((base / folder).glob("*.txt")):
            name = next((split for split, names in _LIST_NAMES.items() if path.stem in names), path.stem)
            if folder != "." or name in (*COUNTS, "test"):
                found.setdefault(name, path)
    return found


def _items(base: Path, path: Path, split: str) -> tuple[list[Item], str]:
    """Return the items of a list, and a note on where their labels are from."""
    folder = _AUG if split == "train_aug" or not (base / _CLASS).is_dir() else _CLASS
    items: list[Item] = []
    missing: list[str] = []
    listed_labels = False
    for line in lines(path):
        fields = line.split()
        image = _file(base, fields[0], "JPEGImages", ".jpg")
        label = None
        if len(fields) > 1 and ("/" in fields[1] or fields[1].endswith(".png")):
            label, listed_labels = _file(base, fields[1], folder, ".png"), True
        elif split != "test":
            label = base / folder / f"{image.stem}.png"
        missing += [printable(file) for file in (image, label) if file is not None and not file.is_file()]
        items.append(Item(image.stem, DataFile(str(image)), None if label is None else DataFile(str(label))))
    if missing:
        hint = f"; {_AUG} is a download of its own: `hyperseg data download voc`" if folder == _AUG else ""
        raise DataError(f"missing: {first_of(missing, 'file')} of the list {printable(path)}{hint}")
    note = f"labels as {printable(path)} lists them" if listed_labels else f"labels from {folder}"
    return items, "without labels" if split == "test" and not listed_labels else note


def _file(base: Path, text: str, folder: str, suffix: str) -> Path:
    """Return the file of a listed name (2007_000032) or path (/JPEGImages/2007_000032.jpg, with folders before it)."""
    parts = [part for part in PurePosixPath(text).parts if part not in ("/", "..")]
    if len(parts) == 1:
        name = parts[0] if parts[0].endswith(suffix) else parts[0] + suffix
        return base / folder / name
    return base.joinpath(*parts[-2:])
