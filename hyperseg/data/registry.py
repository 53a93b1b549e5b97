"""Data sets by the names that the command line takes."""

import contextlib
import inspect
import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from hyperseg._files import printable
from hyperseg.data.dataset import Dataset
from hyperseg.data.errors import DataError, system_errors
from hyperseg.data.listing import folders

# Name -> module and function, called with (root, split, **options).
_OPENERS: dict[str, tuple[str, str]] = {
    "cityscapes": ("cityscapes", "open_cityscapes"),
    "camvid": ("camvid", "open_camvid"),
    "camvid-kaggle": ("camvid", "open_camvid_kaggle"),
    "camvid-32": ("camvid", "open_camvid_32"),
    "voc": ("voc", "open_voc"),
    "folder": ("folder", "open_folder"),
    "synthetic": ("synthetic", "open_synthetic"),
}

# Names of data sets that are computed: they take any root.
WITHOUT_FILES = frozenset({"synthetic"})


_SEARCHED = 20  # folders in the root that are tried, if it is not that of the data set


def dataset_names() -> tuple[str, ...]:
    """Return the names that :func:`open_dataset` takes."""
    return tuple(_OPENERS)


def open_dataset(name: str, root: str | os.PathLike[str] | None, split: str, **options: Any) -> Dataset:
    """Open one split of a data set.

    Args:
        name: one of :func:`dataset_names`.
        root: the folder of the data set; None for one without files, such as synthetic.
        split: such as "train", "val" or "test".
        options: of that data set; see its module.

    Raises:
        ValueError: there is no data set of this name, or it has no such option.
        DataError: its files are not there, or not as published; the message says what was looked for and where.
    """
    if name not in _OPENERS:
        raise ValueError(f"there is no data set {name!r}; give one of {', '.join(_OPENERS)}")
    if root is None:
        if name not in WITHOUT_FILES:
            raise DataError(f"the data set {name} has files; give their folder as the root")
        root = "-"
    if not os.fspath(root):
        raise DataError("the root of the data set is empty; is it a variable that is not set?")
    module, function = _OPENERS[name]
    opener: Callable[..., Dataset] = getattr(import_module(f"hyperseg.data.{module}"), function)
    known = list(inspect.signature(opener).parameters)[2:]
    for option in options:
        if option not in known:
            listed = f"its options are {', '.join(known)}" if known else "it has none"
            raise ValueError(f"{name} has no option {option!r}; {listed}")
    try:
        with system_errors(root):
            return opener(root, split, **options)
    except DataError as error:
        if (place := _elsewhere(opener, Path(root), split, options)) is not None:
            raise DataError(f"{error}; the data set is in {printable(place)}: give that as the root") from None
        raise


def _elsewhere(opener: Callable[..., Dataset], root: Path, split: str, options: dict[str, Any]) -> Path | None:
    """Return the folder in the root, or the one around it, that the split is in; None if it is in none of them."""
    root = root.expanduser()
    with contextlib.suppress(DataError):
        near = folders(root)[:_SEARCHED] if root.is_dir() else []
        for place in (*near, root.absolute().parent):
            with contextlib.suppress(DataError, OSError):
                opener(place, split, **options)
                return place
    return None
