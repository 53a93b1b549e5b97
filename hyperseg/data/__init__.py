"""Data sets: one file each, and `labels.py` with the classes and colours of all."""

from hyperseg.data.labels import (
    CAMVID,
    CITYSCAPES,
    IGNORE_COLOR,
    VOC,
    LabelSet,
    colorize,
    default_label_set,
    label_set,
    palette,
)

__all__ = [
    "CAMVID",
    "CITYSCAPES",
    "IGNORE_COLOR",
    "VOC",
    "LabelSet",
    "colorize",
    "default_label_set",
    "label_set",
    "palette",
]
