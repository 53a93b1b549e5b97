"""Both protocols: the constructed examples, definitions by formula, and torchmetrics."""

import json

import numpy as np
import pytest
import torch

from hyperseg.evaluation import NoLabelledPixelError, official, standard
from tests.evaluation.pairs import ABSENT_LABELS, ABSENT_PREDICTIONS, LABELS, PREDICTIONS, numpy_confusion, random_pair


def test_constructed_example():
    confusion, _ = numpy_confusion(LABELS, PREDICTIONS, 4)
    ours, theirs = standard(confusion), official(confusion)
    assert ours.per_class == (pytest.approx(10 / 14), pytest.approx(16 / 19), 0.0, None)
    assert ours.miou == pytest.approx(0.518797, abs=1e-6)
    assert theirs.per_class == pytest.approx((0.7142857, 0.8421052, 0, 0), abs=1e-7)
    assert theirs.miou == pytest.approx(0.389098, abs=1e-6)
    assert ours.pixel_accuracy == pytest.approx(26 / 30)
    assert theirs.pixel_accuracy == pytest.approx(26 / 30, abs=1e-6)
    assert ours.class_accuracy == pytest.approx(0.861111, abs=1e-6)
    assert ours.accuracy_per_class[2:] == (None, None)
    assert theirs.class_accuracy == pytest.approx(0.430556, abs=1e-6)


def test_classes_that_do_not_occur():
    confusion, _ = numpy_confusion(ABSENT_LABELS, ABSENT_PREDICTIONS, 5)
    scores = standard(confusion)
    assert scores.per_class == (0.75, 0.5, None, 0.0, None)
    assert scores.miou == pytest.approx(1.25 / 3)
    assert scores.pixel_accuracy == pytest.approx(5 / 7)
    assert scores.class_accuracy == pytest.approx((3 / 4 + 2 / 3) / 2)
    assert "NaN" not in json.dumps(scores.document())
    # Together with an image of class 4 alone: one matrix over the set, not a mean of the two images' means.
    confusion[4, 4] += 8
    assert standard(confusion).per_class == (0.75, 0.5, None, 0.0, 1.0)
    assert standard(confusion).miou == pytest.approx(2.25 / 4)
    assert official(confusion).miou == pytest.approx(2.25 / 5, abs=1e-6)


def test_predictions_that_are_no_class_count_as_wrong():
    confusion, other = np.array([[3, 0], [0, 4]]), np.array([1, 0])
    for scores in (standard(confusion, other), official(confusion, other)):
        assert scores.per_class == pytest.approx((3 / 4, 1), abs=1e-6)
        assert scores.pixel_accuracy == pytest.approx(7 / 8)
        assert scores.accuracy_per_class == pytest.approx((3 / 4, 1), abs=1e-6)


@pytest.mark.parametrize("protocol", [standard, official])
def test_nothing_labelled(protocol):
    with pytest.raises(NoLabelledPixelError, match="no labelled pixel"):
        protocol(np.zeros((3, 3), np.int64), np.zeros(3, np.int64))
    assert protocol(np.zeros((3, 3), np.int64), np.array([0, 1, 0])).miou == 0  # labelled, and all wrong


def test_random_pairs_equal_torchmetrics():
    classification = pytest.importorskip("torchmetrics.classification")
    for seed in range(200):
        classes, labels, predictions = random_pair(seed)
        if classes < 2:
            continue
        scores = standard(numpy_confusion(labels, predictions, classes)[0])
        pair = torch.from_numpy(predictions).long(), torch.from_numpy(labels).long()
        each = classification.MulticlassJaccardIndex(classes, average="none", ignore_index=255)(*pair).tolist()
        assert [value or 0.0 for value in scores.per_class] == pytest.approx(each, abs=1e-6)
        macro = classification.MulticlassJaccardIndex(classes, average="macro", ignore_index=255)(*pair)
        assert scores.miou == pytest.approx(float(macro), abs=1e-6)  # it leaves out absent classes too
        assert official(numpy_confusion(labels, predictions, classes)[0]).miou == pytest.approx(
            sum(each) / classes, abs=1e-6
        )
        accuracy = classification.MulticlassAccuracy(classes, average="micro", ignore_index=255)(*pair)
        assert scores.pixel_accuracy == pytest.approx(float(accuracy), abs=1e-6)


def test_official_is_float32_with_an_epsilon():
    """As the authors' ConfusionMatrix.compute has it."""
    for seed in range(20):
        classes, labels, predictions = random_pair(seed)
        confusion, _ = numpy_confusion(labels, predictions, classes)
        h = confusion.astype(np.float32)
        right, rows, columns = np.diag(h), h.sum(1), h.sum(0)
        scores = official(confusion)
        assert scores.per_class == pytest.approx(tuple(right / (rows + columns - right + np.float32(1e-6))), abs=1e-6)
        assert scores.accuracy_per_class == pytest.approx(tuple(right / (rows + np.float32(1e-6))), abs=1e-6)


def test_standard_divides_large_counts_exactly():
    confusion = np.array([[2**60 + 1, 0], [1, 2**60]])
    scores = standard(confusion)
    assert scores.per_class == ((2**60 + 1) / (2**60 + 2), 2**60 / (2**60 + 1))
    assert scores.pixel_accuracy == (2**61 + 1) / (2**61 + 2)
