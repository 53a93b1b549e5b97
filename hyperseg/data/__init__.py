"""Data sets: one file each, found by name in `registry.py`, and `labels.py` with the classes and colours of all."""

from hyperseg.data.dataset import Dataset, Item, LabelDecoder, manifest_hash
from hyperseg.data.errors import DataError
from hyperseg.data.files import DataFile
from hyperseg.data.labels import (
    CAMVID,
    CAMVID_11,
    CAMVID_32,
    CITYSCAPES,
    IGNORE_COLOR,
    VOC,
    LabelSet,
    colorize,
    default_label_set,
    label_set,
    label_set_of,
    palette,
)
from hyperseg.data.masks import ColorDecoder, IndexDecoder, MaskDecoder
from hyperseg.data.registry import dataset_names, open_dataset

__all__ = [
    "CAMVID",
    "CAMVID_11",
    "CAMVID_32",
    "CITYSCAPES",
    "IGNORE_COLOR",
    "VOC",
    "ColorDecoder",
    "DataError",
    "DataFile",
    "Dataset",
    "IndexDecoder",
    "Item",
    "LabelDecoder",
    "LabelSet",
    "MaskDecoder",
    "colorize",
    "dataset_names",
    "default_label_set",
    "label_set",
    "label_set_of",
    "manifest_hash",
    "open_dataset",
    "palette",
]
