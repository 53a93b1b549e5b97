"""Boundary IoU (Cheng et al., CVPR 2021) of label maps: IoU of the bands along the inner sides of all boundaries.

The band of a class in a label map is its pixels that an erosion by a 3x3 square, applied d times, would remove: those
that have another class, or the outside of the image, within d pixels in both directions. Ignored pixels belong to every
mask before the erosion, so no boundary runs along them, and they are not counted. Counts are summed over the set.
"""

import math
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from hyperseg.evaluation.confusion import histogram


def boundary_distance(size: tuple[int, int], ratio: float) -> int:
    """Return the width d of the bands in an image of `size` (H, W): `ratio` of the diagonal, rounded, at least 1."""
    return max(1, round(ratio * math.hypot(*size)))


def boundary_band(labels: Tensor, distance: int, ignored: Tensor) -> Tensor:
    """Return which pixels of a label map are in the band of their own class.

    Args:
        labels: integers ``[H, W]``.
        distance: width of the band in pixels.
        ignored: bool ``[H, W]``: pixels without a label.

    Returns:
        bool ``[H, W]``; False where `ignored`.
    """
    height, width = labels.shape
    values = labels.short()
    # A pixel has another class in its square exactly if the smallest or largest class there is not its own.
    smallest = _over_squares(values.masked_fill(ignored, 32767), distance, torch.minimum, 32767)
    largest = _over_squares(values.masked_fill(ignored, -1), distance, torch.maximum, -1)
    band = (smallest < values) | (largest > values)
    for dimension, side in enumerate((height, width)):
        edge = min(distance, side)
        band.narrow(dimension, 0, edge).fill_(True)
        band.narrow(dimension, side - edge, edge).fill_(True)
    return band & ~ignored


def boundary_counts(labels: Tensor, predictions: Tensor, classes: int, ignore_index: int, distance: int) -> Tensor:
    """Count the pixels in the bands of each class.

    Args:
        labels: uint8 ``[H, W]``: 0..classes-1, or `ignore_index`.
        predictions: uint8 ``[H, W]``; 0..classes-1, other values are no class.
        classes, ignore_index: as in :class:`hyperseg.evaluation.confusion.Confusion`.
        distance: see :func:`boundary_distance`.

    Returns:
        int64 ``[3, classes]``: pixels in both bands of a class, in that of the labels, in that of the predictions.
    """
    ignored = labels == ignore_index
    predictions = predictions.clamp(max=classes)
    in_labels = boundary_band(labels, distance, ignored)
    in_predictions = boundary_band(predictions, distance, ignored)
    both = in_labels & in_predictions & (labels == predictions)
    pairs = ((both, labels), (in_labels, labels), (in_predictions, predictions))
    counts = [histogram(torch.where(band, values, classes), classes + 1) for band, values in pairs]
    return torch.stack(counts)[:, :classes]


class BoundaryIoU:
    """Boundary IoU over a set of images; the counts stay on the device until they are read.

    Args:
        classes, ignore_index, device: as in :class:`hyperseg.evaluation.confusion.Confusion`.
        ratio: width of the bands as a part of the image's diagonal.
    """

    def __init__(
        self, classes: int, ignore_index: int = 255, device: str | torch.device = "cpu", ratio: float = 0.02
    ) -> None:
        if not 0 < ratio <= 1:
            raise ValueError(f"the ratio of the boundary is {ratio}; give a part of the diagonal, such as 0.02")
        self.classes, self.ignore_index, self.ratio = classes, ignore_index, ratio
        self.counts = torch.zeros((3, classes), dtype=torch.int64, device=device)
        self.distances: dict[str, int] = {}

    def add(self, labels: Tensor, predictions: Tensor) -> None:
        """Add an image."""
        height, width = labels.shape
        distance = boundary_distance((height, width), self.ratio)
        self.distances[f"{height}x{width}"] = distance
        self.counts += boundary_counts(labels, predictions, self.classes, self.ignore_index, distance)

    def all_reduce(self) -> None:
        """Replace the counts by their sum over all processes of the default group, if there is one."""
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(self.counts)
            gathered: list[dict[str, int]] = [{}] * dist.get_world_size()
            dist.all_gather_object(gathered, self.distances)
            self.distances = {size: value for each in gathered for size, value in each.items()}

    def per_class(self) -> list[float | None]:
        """Return the boundary IoU of each class; None for one without any boundary."""
        both, labels, predictions = self.counts.tolist()
        unions = [a + b - c for a, b, c in zip(labels, predictions, both, strict=True)]
        return [hit / union if union else None for hit, union in zip(both, unions, strict=True)]


def _over_squares(values: Tensor, distance: int, extreme: Callable[[Tensor, Tensor], Tensor], outside: int) -> Tensor:
    """Return the minimum or maximum over the square of side 2 * distance + 1 around each value of ``[H, W]``."""
    side = 2 * distance + 1
    values = torch.nn.functional.pad(values, (distance,) * 4, value=outside)
    for dimension in (0, 1):
        length = 1  # each value is the extreme of so many values from its place on
        while 2 * length <= side:
            count = values.shape[dimension] - length
            values = extreme(values.narrow(dimension, 0, count), values.narrow(dimension, length, count))
            length *= 2
        shift = side - length
        count = values.shape[dimension] - shift
        values = extreme(values.narrow(dimension, 0, count), values.narrow(dimension, shift, count))
    return values
