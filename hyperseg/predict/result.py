"""The result of prediction: the labels of a frame."""

import functools
from dataclasses import dataclass

import numpy as np

from hyperseg.data.labels import LabelSet
from hyperseg.data.shares import ClassShare, class_shares
from hyperseg.predict.frames import Frame


@dataclass(frozen=True)
class Prediction:
    """A frame, its labels (uint8 [H, W], the size of the frame's image) and the label set that names them."""

    frame: Frame
    labels: np.ndarray
    label_set: LabelSet

    @functools.cached_property
    def shares(self) -> list[ClassShare]:
        """The classes present, see `class_shares`."""
        return class_shares(self.labels, self.label_set)
