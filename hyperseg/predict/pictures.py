"""Pictures of predictions, uint8 [H, W, 3]: what image and video sinks write and a window shows.

Each is called with a prediction. Those for videos have the same size for all frames of a size.
"""

from dataclasses import dataclass, field

import numpy as np

from hyperseg.data.drawing import check_alpha, overlay, with_legend
from hyperseg.data.labels import LabelSet, colorize
from hyperseg.data.legend import legend_strip
from hyperseg.data.shares import ClassShare
from hyperseg.predict.result import Prediction


def class_colors(prediction: Prediction) -> np.ndarray:
    """Return the labels in the colours of their classes."""
    return colorize(prediction.labels, prediction.label_set)


@dataclass
class Overlay:
    """The image blended with the colours of the classes.

    Args:
        alpha: opacity of the colours, 0 (image only) to 1 (colours only).
        legend: add a strip below: "present" names the classes of this frame and their shares, "all" names all classes.

    Raises:
        ValueError: an argument is out of range.
    """

    alpha: float = 0.6
    legend: str | None = None
    _strips: dict[tuple[int, int], np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_alpha(self.alpha)
        if self.legend not in (None, "present", "all"):
            raise ValueError(f"legend is {self.legend!r}; give None, 'present' or 'all'")

    def __call__(self, prediction: Prediction) -> np.ndarray:
        """Return the picture of a prediction, uint8 [H, W, 3]."""
        return self.with_legend(self.blended(prediction), prediction)

    def blended(self, prediction: Prediction) -> np.ndarray:
        """Return the picture without the legend: uint8 [H, W, 3] of the image's size."""
        return overlay(prediction.frame.image, prediction.labels, prediction.label_set, self.alpha)

    def with_legend(self, picture: np.ndarray, prediction: Prediction) -> np.ndarray:
        """Return a picture with the legend below, if there is one."""
        table = prediction.label_set
        if self.legend == "present":
            return with_legend(picture, prediction.shares, table)
        return np.concatenate([picture, self._strip(picture.shape, table)]) if self.legend == "all" else picture

    def _strip(self, shape: tuple[int, ...], table: LabelSet) -> np.ndarray:
        """Return the strip for a size, which is drawn once: cut on the right if the picture is very narrow."""
        size = (shape[0], shape[1])
        if size not in self._strips:
            classes = [ClassShare(index, name, 0, 0.0) for index, name in enumerate(table.classes)]
            strip = legend_strip(classes, table, width=size[1], scale=min(size), percentages=False)
            self._strips[size] = strip[:, : size[1]]
        return self._strips[size]


@dataclass
class SideBySide:
    """The image on the left, its overlay on the right, and the legend of the overlay, if it has one, below both."""

    right: Overlay = field(default_factory=Overlay)

    def __call__(self, prediction: Prediction) -> np.ndarray:
        """Return the picture of a prediction, uint8 [H, W, 3]."""
        pair = np.concatenate([prediction.frame.image, self.right.blended(prediction)], axis=1)
        return self.right.with_legend(pair, prediction)
