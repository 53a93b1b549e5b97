"""A data set of your own: images and masks in folders, and a file that names the classes.

    images/SPLIT/NAME.jpg       any kind of image that is read
    masks/SPLIT/NAME.png        or NAME_mask.png, NAME_labels.png, NAME_labelIds.png, ..., or NAME.jpg.png
    classes.yaml                its keys are described in `classes_file.py`; `classes: [road, car]` is enough

SPLIT is any name, such as train or val, or several joined by "+". Masks are class indices (grey or palette PNG, TIFF of
8 to 32 bits) or, with `colors` in classes.yaml, RGB images; a value or colour without a class is an error.

Without a classes.yaml the exports of labelme, CVAT and Supervisely are recognised; see `exports.py`.

Options: `unmatched`, what happens to images without a mask and masks without an image: "refuse"; "skip" leaves both
out; "keep" keeps such images without labels, as for a test split.
"""

import os
from pathlib import Path

from hyperseg._files import printable
from hyperseg.data.classes_file import read_classes
from hyperseg.data.dataset import Dataset, Item
from hyperseg.data.errors import DataError
from hyperseg.data.exports import open_export
from hyperseg.data.files import DataFile
from hyperseg.data.listing import folders, image_files, root_folder, splits_of
from hyperseg.data.matching import check_unmatched, pairs


def open_folder(root: str | os.PathLike[str], split: str, unmatched: str = "refuse") -> Dataset:
    """Open a split. Raises DataError: nothing is there, or images and masks do not match."""
    check_unmatched(unmatched)
    folder = root_folder(root)
    path = next((folder / name for name in ("classes.yaml", "classes.yml") if (folder / name).is_file()), None)
    if path is None:
        if (export := open_export(folder, split, unmatched)) is not None:
            return export
        raise DataError(
            f"there is no classes.yaml in {printable(folder)}, nor an export of labelme (class_names.txt), CVAT "
            "(labelmap.txt) or Supervisely (meta.json); write one, such as `classes: [road, car]` for masks of 0 and 1"
        )
    classes = read_classes(path)
    images = folder / "images"
    known = [place.name for place in folders(images)] if images.is_dir() else []
    if not known:
        raise DataError(f"there are no folders in {printable(images)}; images are in images/SPLIT/NAME.jpg")
    items: list[Item] = []
    notes = ""
    for part in splits_of(split, known, printable(images)):
        masks = folder / "masks" / part
        if not masks.is_dir() and unmatched != "keep":
            raise DataError(
                f"there is no folder {printable(masks)} with the masks of {printable(images / part)}; for a split "
                "without labels give the option unmatched=keep"
            )
        found, note = pairs(_flat(images / part), _flat(masks) if masks.is_dir() else [], masks, unmatched)
        items += found
        notes += note
    form = f"images and masks in folders, {path.name} with {len(classes.label_set)} classes, in {printable(folder)}"
    return Dataset("folder", split, form + notes, classes.label_set, items, classes.decoder)


def _flat(folder: Path) -> list[DataFile]:
    """Return the images of a folder that has no folders, whose images would be overlooked. Raises DataError."""
    if inner := folders(folder):
        raise DataError(f"{printable(folder)} has the folder {printable(inner[0].name)}; files must be in it directly")
    return image_files(folder)
