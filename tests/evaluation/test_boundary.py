"""Boundary IoU against its definition: a mask per class, eroded again and again."""

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion

from hyperseg.evaluation.boundary import BoundaryIoU, boundary_band, boundary_counts, boundary_distance
from tests.evaluation.pairs import LABELS, PREDICTIONS, blobs

SQUARE = np.ones((3, 3), bool)


def band_of(mask, ignored, distance):
    """The pixels of a mask that an erosion by a 3x3 square, applied `distance` times, removes."""
    joined = mask | ignored
    inner = binary_erosion(joined, SQUARE, iterations=distance, border_value=0)
    return mask & ~inner & ~ignored


def counts_of(labels, predictions, classes, distance):
    ignored = labels == 255
    counts = []
    for index in range(classes):
        truth, found = (band_of(each == index, ignored, distance) for each in (labels, predictions))
        counts.append([(truth & found).sum(), truth.sum(), found.sum()])
    return np.array(counts).T


def test_constructed_example():
    boundary = BoundaryIoU(4, ratio=0.02)
    boundary.add(torch.from_numpy(LABELS), torch.from_numpy(PREDICTIONS))
    assert boundary.distances == {"6x6": 1}
    assert boundary.per_class() == [pytest.approx(7 / 14), pytest.approx(13 / 19), 0.0, None]
    assert np.mean([7 / 14, 13 / 19, 0]) == pytest.approx(0.394737, abs=1e-6)


@pytest.mark.parametrize("distance", [1, 2, 3, 5, 8])
def test_random_maps_equal_the_definition(distance):
    for seed in range(12):
        size, classes = ((17, 23), (40, 31), (9, 60), (1, 7))[seed % 4], (2, 3, 19)[seed % 3]
        labels = blobs(seed, size, classes)
        predictions = blobs(seed + 1000 if seed % 2 else seed, size, classes, ignored=False)
        predictions[size[0] // 2 :] = np.roll(labels, 1, axis=1)[size[0] // 2 :]  # similar, and some are no class
        found = boundary_counts(torch.from_numpy(labels), torch.from_numpy(predictions), classes, 255, distance)
        np.testing.assert_array_equal(found.numpy(), counts_of(labels, predictions, classes, distance))


def test_a_band_wider_than_the_image():
    labels = np.zeros((4, 5), np.uint8)
    found = boundary_counts(torch.from_numpy(labels), torch.from_numpy(labels), 1, 255, distance=46)
    assert found.tolist() == [[20], [20], [20]]


def test_ignored_pixels_are_no_boundary():
    labels = torch.zeros(9, 9, dtype=torch.uint8)
    labels[4, 4] = 255
    band = boundary_band(labels, 2, labels == 255)
    assert int(band.sum()) == 9 * 9 - 5 * 5
    assert not band[3, 3]


@pytest.mark.parametrize(
    ("size", "ratio", "distance"),
    [((1024, 2048), 0.02, 46), ((1024, 2048), 0.005, 11), ((6, 6), 0.02, 1), ((1, 1), 0.001, 1)],
)
def test_distance(size, ratio, distance):
    assert boundary_distance(size, ratio) == distance


def test_counts_are_summed_over_the_set():
    boundary = BoundaryIoU(3, ratio=0.05)
    expected = np.zeros((3, 3), int)
    for seed, size in enumerate([(20, 30), (40, 50)]):
        labels, predictions = blobs(seed, size, 3), blobs(seed + 9, size, 3, ignored=False)
        boundary.add(torch.from_numpy(labels), torch.from_numpy(predictions))
        expected += counts_of(labels, predictions, 3, boundary_distance(size, 0.05))
    assert boundary.counts.tolist() == expected.tolist()
    assert boundary.distances == {"20x30": 2, "40x50": 3}
    both, first, second = expected
    assert boundary.per_class() == pytest.approx(list(both / (first + second - both)))


@pytest.mark.parametrize("ratio", [0, -1, 1.5])
def test_ratios_out_of_range(ratio):
    with pytest.raises(ValueError, match="ratio"):
        BoundaryIoU(3, ratio=ratio)
