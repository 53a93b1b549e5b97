"""Writing of any data set as a data set of the kind `folder`: PNG images and masks, and classes.yaml."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from PIL import Image

from hyperseg._files import atomic_write, printable
from hyperseg.data.dataset import Dataset
from hyperseg.data.drawing import label_image
from hyperseg.data.errors import DataError
from hyperseg.data.labels import LabelSet


def write_folder(
    datasets: Sequence[Dataset],
    root: str | os.PathLike[str],
    on_error: Callable[[str], object] = lambda message: None,
    progress: Callable[[], object] = lambda: None,
) -> int:
    """Write splits of one data set, all or none: they are in hidden folders until all are complete.

    The folders of a split such as train+val are called train_val.

    Args:
        root: a new folder, or one without these splits.
        on_error: called with the message for an image that cannot be read; it is left out.
        progress: called after each image.

    Returns:
        The number of images that were written.

    Raises:
        DataError: `root` already has files of a split, or other classes.
        OSError: a file cannot be written.
    """
    folder = Path(root).expanduser()
    table = datasets[0].label_set
    text = classes_yaml(table)
    path = folder / "classes.yaml"
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise DataError(f"{printable(path)} has other classes; give a new folder")
    for dataset in datasets:
        for kind in ("images", "masks"):
            place = folder / kind / _name(dataset)
            if place.exists() and any(place.iterdir()):
                raise DataError(f"there are files in {printable(place)}; remove them or give a new folder")
    written = 0
    with _hidden_folders(folder, [_name(dataset) for dataset in datasets]):
        for dataset in datasets:
            for index in range(len(dataset)):
                try:
                    written += _write(dataset, index, folder)
                except DataError as error:
                    on_error(str(error))
                progress()
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return written


def classes_yaml(table: LabelSet) -> str:
    """Return the classes.yaml of a label set, for masks of class indices."""
    colors = [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in table.colors]
    if len(set(colors)) < len(colors):  # a colour of two classes has no meaning in a mask
        colors = []
    lines = ["classes:"]
    lines += [f"  - {json.dumps(name, ensure_ascii=False)}" for name in table.classes]
    lines.append(f"ignore_index: {table.ignore_index}")
    if table.background is not None:
        lines.append(f"background: {json.dumps(table.classes[table.background], ensure_ascii=False)}")
    lines += ["colors:", *(f'  - "{color}"' for color in colors)] if colors else []
    return "\n".join(lines) + "\n"


def _write(dataset: Dataset, index: int, root: Path) -> int:
    """Write the image and the mask of an item; return 1."""
    item = dataset.items[index]
    if item.label is None:
        image = dataset.image(index)
    else:
        image, labels = dataset.sample(index)
        mask = _hidden(root, "masks", _name(dataset)) / f"{item.name}.png"
        _save(label_image(labels, dataset.label_set), mask)
    _save(Image.fromarray(image), _hidden(root, "images", _name(dataset)) / f"{item.name}.png")
    return 1


@contextlib.contextmanager
def _hidden_folders(root: Path, splits: Sequence[str]) -> Iterator[None]:
    """Give the hidden folders of splits their names when the block has completed; remove them if it has not."""
    places = {_hidden(root, kind, split): root / kind / split for split in splits for kind in ("masks", "images")}

    def remove() -> None:
        for place in places:
            shutil.rmtree(place, ignore_errors=True)

    remove()  # those of a run that was killed
    try:
        yield
        for place, target in places.items():
            if place.exists():
                os.replace(place, target)
    finally:
        remove()


def _hidden(root: Path, kind: str, name: str) -> Path:
    """Return the folder of a split while it is written."""
    return root / kind / f".{name}.partial"


def _name(dataset: Dataset) -> str:
    return dataset.split.replace("+", "_")


def _save(image: Image.Image, path: Path) -> None:
    with atomic_write(path) as temporary:
        image.save(temporary, format="PNG", compress_level=3)
