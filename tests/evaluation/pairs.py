"""Pairs of labels and predictions with known scores, and data sets made of label files."""

import numpy as np
from PIL import Image

from hyperseg.data.dataset import Dataset, Item
from hyperseg.data.files import DataFile
from hyperseg.data.labels import default_label_set
from hyperseg.data.masks import identity

# Four classes, 6x6 pixels, one row ignored. Scores are in the tests that use it.
LABELS = np.array([list("000111")] * 4 + [["255"] * 6] + [["1"] * 6]).astype(int).astype(np.uint8)
PREDICTIONS = np.array(
    [list(row) for row in ("000111", "001111", "000011", "200111", "001123", "111110")],
).astype(np.uint8)

# Five classes: 2 is predicted only where it is ignored, 3 is predicted and never labelled, 4 does not occur.
ABSENT_LABELS = np.array([[0, 0, 1, 1], [0, 0, 1, 255]], np.uint8)
ABSENT_PREDICTIONS = np.array([[0, 0, 1, 3], [0, 1, 1, 2]], np.uint8)


def random_pair(seed, other=False):
    """Return classes, labels and predictions of odd sizes; `other`: some predictions are no class."""
    rng = np.random.default_rng(seed)
    classes = int(rng.integers(1, 25))
    height, width = (int(side) for side in rng.integers(1, 40, 2))
    present = rng.choice(classes, size=rng.integers(1, classes + 1), replace=False)
    labels = rng.choice(present, (height, width)).astype(np.uint8)
    predictions = np.where(rng.random((height, width)) < 0.6, labels, rng.integers(0, classes, (height, width)))
    labels[rng.random((height, width)) < rng.choice([0, 0.2, 0.8])] = 255
    labels.flat[0] = present[0]  # so that something is labelled
    if other:
        predictions[rng.random((height, width)) < 0.1] = rng.integers(classes, 256)
    return classes, labels, predictions.astype(np.uint8)


def blobs(seed, size, classes, ignored=True):
    """Return labels [H, W] of large regions, some of them ignored: with boundaries of every kind."""
    rng = np.random.default_rng(seed)
    scale = int(rng.integers(1, 9))
    coarse = rng.integers(0, classes, (-(-size[0] // scale), -(-size[1] // scale)))
    if ignored:
        coarse[rng.random(coarse.shape) < 0.15] = 255
    return coarse.repeat(scale, 0).repeat(scale, 1)[: size[0], : size[1]].astype(np.uint8)


def numpy_confusion(labels, predictions, classes):
    """Count with a loop over classes: K x K, and per label the pixels whose prediction is no class."""
    matrix = [[int(((labels == a) & (predictions == b)).sum()) for b in range(classes)] for a in range(classes)]
    other = [int(((labels == a) & (predictions >= classes)).sum()) for a in range(classes)]
    return np.array(matrix), np.array(other)


def write_dataset(folder, labels, classes, names=None, images=True):
    """Write labels, and images whose red value is the label, as PNG; return the data set."""
    items = []
    for index, each in enumerate(labels):
        name = names[index] if names else f"image_{index:03d}"
        paths = [folder / kind / f"{name}.png" for kind in ("images", "labels")]
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(each).save(paths[1])
        if images:
            Image.fromarray(np.stack([each] * 3, axis=2)).save(paths[0])
        items.append(Item(name, DataFile(str(paths[0])), DataFile(str(paths[1]))))
    table = default_label_set(classes)
    return Dataset("pairs", "val", "pairs of label files", table, items, identity(classes))


def write_predictions(folder, dataset, predictions, ending=""):
    """Write predictions as grey PNGs named after the items."""
    folder.mkdir(parents=True, exist_ok=True)
    for item, each in zip(dataset.items, predictions, strict=True):
        Image.fromarray(each).save(folder / f"{item.name}{ending}.png")
    return folder
