"""Data sets by the names that the command line takes."""

import os
from collections.abc import Callable
from importlib import import_module
from typing import Any

from hyperseg.data.dataset import Dataset
from hyperseg.data.errors import DataError

# Name -> module and function, called with (root, split, **options).
_OPENERS: dict[str, tuple[str, str]] = {}


def dataset_names() -> tuple[str, ...]:
    """Return the names that :func:`open_dataset` takes."""
    return tuple(_OPENERS)


def open_dataset(name: str, root: str | os.PathLike[str], split: str, **options: Any) -> Dataset:
    """Open one split of a data set.

    Args:
        name: one of :func:`dataset_names`.
        root: the folder of the data set.
        split: such as "train", "val" or "test".
        options: of that data set; see its module.

    Raises:
        ValueError: there is no data set of this name.
        DataError: its files are not there, or not as published; the message says what was looked for and where.
    """
    if name not in _OPENERS:
        raise ValueError(f"there is no data set {name!r}; give one of {', '.join(_OPENERS)}")
    if not os.fspath(root):
        raise DataError("the root of the data set is empty; is it a variable that is not set?")
    module, function = _OPENERS[name]
    opener: Callable[..., Dataset] = getattr(import_module(f"hyperseg.data.{module}"), function)
    return opener(root, split, **options)
