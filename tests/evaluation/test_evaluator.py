"""Evaluation of a data set: totals, scores per image, bad files, and what is kept in memory."""

import threading

import numpy as np
import pytest
import torch
from PIL import Image

from hyperseg.data import CAMVID
from hyperseg.data.dataset import Dataset, Item, manifest_hash
from hyperseg.data.errors import DataError
from hyperseg.evaluation import NoLabelledPixelError, boundary_distance, standard, totals
from hyperseg.evaluation.boundary import boundary_counts
from hyperseg.evaluation.evaluator import evaluate, predict_items
from hyperseg.evaluation.inference import Inference, NetworkLabeller
from hyperseg.evaluation.predictions import PredictionFolder
from tests.evaluation.networks import Painted
from tests.evaluation.pairs import (
    ABSENT_LABELS,
    ABSENT_PREDICTIONS,
    blobs,
    numpy_confusion,
    write_dataset,
    write_predictions,
)

SIZES = [(20, 30), (31, 17), (20, 30), (8, 8), (25, 25)]


@pytest.fixture
def pairs():
    labels = [blobs(seed, size, 4) for seed, size in enumerate(SIZES)]
    rng = np.random.default_rng(1)
    noise = [rng.integers(0, 5, size) for size in SIZES]  # 4 is no class
    predictions = [np.where((rng.random(a.shape) < 0.7) & (a < 4), a, b) for a, b in zip(labels, noise, strict=True)]
    return labels, [each.astype(np.uint8) for each in predictions]


@pytest.fixture
def dataset(tmp_path, pairs):
    return write_dataset(tmp_path, pairs[0], 4)


@pytest.fixture
def folder(tmp_path, dataset, pairs):
    return write_predictions(tmp_path / "predictions", dataset, pairs[1])


def test_totals_and_scores_per_image(dataset, folder, pairs, monkeypatch):
    monkeypatch.setattr(totals, "_FLUSH", 2)
    seen = []
    result = evaluate(
        dataset, PredictionFolder(folder, dataset), {"a": 1}, root="here", progress=lambda *done: seen.append(done)
    )
    counts = [numpy_confusion(labels, predictions, 4) for labels, predictions in zip(*pairs, strict=True)]
    confusion, other = sum(each for each, _ in counts), sum(each for _, each in counts)
    assert result.confusion == confusion.tolist()
    assert result.other_predictions == other.tolist()
    assert sum(result.other_predictions) > 0
    assert result.protocols["standard"] == standard(confusion, other).document()
    assert [image["name"] for image in result.images] == [item.name for item in dataset.items]
    for image, (matrix, rest) in zip(result.images, counts, strict=True):
        scores = standard(matrix, rest)
        assert image["miou"] == pytest.approx(scores.miou)
        assert image["pixel_accuracy"] == pytest.approx(scores.pixel_accuracy)
        assert image["labelled_pixels"] == matrix.sum() + rest.sum()
    bands = sum(
        boundary_counts(torch.from_numpy(a), torch.from_numpy(b), 4, 255, boundary_distance(a.shape, 0.02))
        for a, b in zip(*pairs, strict=True)
    )
    both, first, second = bands.tolist()
    expected = [c / (a + b - c) for a, b, c in zip(first, second, both, strict=True)]
    assert result.boundary_iou["per_class"] == pytest.approx(expected)
    assert result.boundary_iou["miou"] == pytest.approx(np.mean(expected))
    assert set(result.boundary_iou["distances"]) == {"20x30", "31x17", "8x8", "25x25"}
    assert seen == [(index, 5) for index in range(1, 6)]
    assert result.settings == {"a": 1}
    assert result.data["images"] == 5
    assert result.data["manifest_hash"] == manifest_hash(dataset.manifest())


def test_one_matrix_over_the_set_and_not_a_mean_of_images(tmp_path):
    fours = np.full((2, 4), 4, np.uint8)
    dataset = write_dataset(tmp_path, [ABSENT_LABELS, fours], 5, images=False)
    folder = write_predictions(tmp_path / "p", dataset, [ABSENT_PREDICTIONS, fours])
    result = evaluate(dataset, PredictionFolder(folder, dataset), boundary_ratio=None)
    assert result.protocols["standard"]["miou"] == pytest.approx(0.5625)
    assert result.protocols["standard"]["per_class"] == [0.75, 0.5, None, 0.0, 1.0]
    assert [image["miou"] for image in result.images] == [pytest.approx(1.25 / 3), 1.0]
    assert result.boundary_iou is None


def test_a_network_in_batches_gives_what_it_gives_alone(tmp_path):
    labels = [blobs(seed, size, 12) for seed, size in enumerate(SIZES)]
    dataset = write_dataset(tmp_path, labels, 12)
    results = [
        evaluate(dataset, NetworkLabeller(Painted(), Inference(engine=False, batch=batch)), workers=workers)
        for batch, workers in ((1, 1), (2, 3), (4, 2))
    ]
    assert len({str(result.confusion) for result in results}) == 1
    assert len({str(result.images) for result in results}) == 1
    assert sum(map(sum, results[0].confusion)) == sum(int((each != 255).sum()) for each in labels)


def test_classes_of_the_network_alone_count_as_wrong(tmp_path):
    """Void, class 11, on a data set of 11 classes."""
    void = np.array([[0, 0, 0]], np.uint8)
    labels = np.zeros((6, 8), np.uint8)
    dataset = write_dataset(tmp_path, [labels], 11)
    image = np.tile(np.array(CAMVID.colors[0], np.uint8), (6, 8, 1))
    image[:2] = void
    Image.fromarray(image).save(dataset.items[0].image.path)
    result = evaluate(dataset, NetworkLabeller(Painted(), Inference(engine=False)))
    assert (result.confusion[0][0], result.other_predictions[0]) == (32, 16)
    assert result.protocols["standard"]["per_class"][0] == pytest.approx(32 / 48)


def test_bad_files_are_named_and_the_others_scored(dataset, folder, pairs):
    names = [item.name for item in dataset.items]
    (folder / f"{names[0]}.png").unlink()
    Image.fromarray(pairs[1][1][:-1]).save(folder / f"{names[1]}.png")
    label = dataset.items[2].label.path
    with open(label, "r+b") as file:
        file.truncate(60)
    stray = pairs[0][3].copy()
    stray[2, 3] = 77
    Image.fromarray(stray).save(dataset.items[3].label.path)
    errors = []
    result = evaluate(dataset, PredictionFolder(folder, dataset), on_error=errors.append)
    assert result.errors == errors
    assert len(errors) == 4
    for error, parts in zip(
        errors,
        [
            ("no prediction for", names[0], f"{names[0]}_labels.png", str(folder)),
            (f"{names[1]}.png is 30x17 but the labels are 31x17", "not resized"),
            (label,),
            (dataset.items[3].label.path, "77"),
        ],
        strict=True,
    ):
        assert all(part in error for part in parts), error
    assert [image["name"] for image in result.images] == names[4:]
    assert sum(map(sum, result.confusion)) + sum(result.other_predictions) == (pairs[0][4] != 255).sum()


def test_labels_of_another_decoder_are_checked(dataset, folder):
    class Careless:
        def __call__(self, data, name):
            return np.full((20, 30), 9, np.uint8)

        def description(self):
            return {}

    bad = Dataset("careless", "val", "", dataset.label_set, dataset.items[:1], Careless())
    errors = []
    with pytest.raises(DataError, match="none of 1 image of careless val"):
        evaluate(bad, PredictionFolder(folder, bad), on_error=errors.append)
    assert errors == [f"{bad.items[0].label} has labels 9; classes are 0 to 3, and 255 is ignored"]


def test_a_missing_image_leaves_no_manifest(tmp_path, dataset, folder):
    (tmp_path / "images" / "image_001.png").unlink()
    result = evaluate(dataset, NetworkLabeller(Painted(), Inference(engine=False)))
    assert "image_001.png" in result.errors[0]
    assert result.data["manifest_hash"] is None
    result = evaluate(dataset, PredictionFolder(folder, dataset))  # needs no images
    assert result.errors == []
    assert result.data["manifest_hash"] is None


def test_nothing_labelled(tmp_path, pairs):
    void = [np.full(each.shape, 255, np.uint8) for each in pairs[0]]
    dataset = write_dataset(tmp_path, void, 4, images=False)
    folder = write_predictions(tmp_path / "p", dataset, pairs[1])
    with pytest.raises(NoLabelledPixelError, match="no labelled pixel in 5 images of pairs val"):
        evaluate(dataset, PredictionFolder(folder, dataset))


def test_a_split_without_labels(tmp_path, pairs):
    written = []

    class Writer:
        def path(self, item):
            raise AssertionError

        def write(self, item, labels):
            written.append((item.name, labels.shape))

    full = write_dataset(tmp_path, pairs[0], 4)
    bare = Dataset("bare", "test", "", full.label_set, [Item(i.name, i.image, None) for i in full.items], full.decoder)
    labeller = NetworkLabeller(Painted(), Inference(engine=False))
    with pytest.raises(NoLabelledPixelError, match="'test' of bare has no labels"):
        evaluate(bare, labeller)
    with pytest.raises(NoLabelledPixelError):
        evaluate(bare, labeller, writers=[Writer()])
    assert written == [(item.name, size) for item, size in zip(bare.items, SIZES, strict=True)]
    # Some have labels: the others are errors.
    mixed = Dataset("mixed", "test", "", full.label_set, [*full.items[:4], bare.items[4]], full.decoder)
    assert "has no labels" in evaluate(mixed, labeller).errors[0]


def test_few_images_are_in_memory(tmp_path):
    """Readers stay a few images ahead, however many there are."""
    dataset = write_dataset(tmp_path, [blobs(1, (8, 9), 3)] * 40, 3, images=False)
    held, most, lock = set(), [0], threading.Lock()

    class Slow:
        reads_images, batch, device = False, 2, torch.device("cpu")

        def prepare(self, item, image, size):
            with lock:
                held.add(item.name)
                most[0] = max(most[0], len(held))
            return item.name, size

        def labels(self, images):
            with lock:
                held.difference_update(name for name, _ in images)
            return [torch.zeros(size, dtype=torch.uint8) for _, size in images]

    result = evaluate(dataset, Slow(), workers=3)
    assert len(result.images) == 40
    assert most[0] <= 2 + 3 + 2 + 1


def test_lack_of_memory_is_an_error_of_the_image(dataset, folder):
    class Full(PredictionFolder):
        def labels(self, images):
            if images[0].shape == (8, 8):
                raise RuntimeError("CUDA out of memory. Tried to allocate 20 GiB")
            return super().labels(images)

    result = evaluate(dataset, Full(folder, dataset))
    assert len(result.images) == 4
    assert "image_003" in result.errors[0]
    assert "does not fit in memory" in result.errors[0]


def test_other_errors_of_the_network_are_raised(dataset, folder):
    class Broken(PredictionFolder):
        def labels(self, images):
            raise RuntimeError("a kernel failed")

    with pytest.raises(RuntimeError, match="a kernel failed"):
        evaluate(dataset, Broken(folder, dataset))


def test_predictions_of_some_images(tmp_path, pairs):
    dataset = write_dataset(tmp_path, pairs[0], 4)
    folder = write_predictions(tmp_path / "p", dataset, pairs[1])
    names = [dataset.items[3].name, dataset.items[0].name]
    found = list(predict_items(dataset, PredictionFolder(folder, dataset), names))
    assert [name for name, *_ in found] == names
    for index, (_, image, labels, predictions) in zip((3, 0), found, strict=True):
        np.testing.assert_array_equal(image[:, :, 0], pairs[0][index])
        np.testing.assert_array_equal(labels, pairs[0][index])
        np.testing.assert_array_equal(predictions, pairs[1][index])
