"""The confusion matrix against NumPy's, and against torchmetrics."""

import numpy as np
import pytest
import torch

from hyperseg.evaluation import Confusion, confusion
from hyperseg.evaluation.confusion import confusion_table, histogram
from tests.evaluation.pairs import ABSENT_LABELS, ABSENT_PREDICTIONS, LABELS, PREDICTIONS, numpy_confusion, random_pair


def counted(labels, predictions, classes):
    counts = Confusion(classes)
    counts.add(torch.from_numpy(labels), torch.from_numpy(predictions))
    return counts.counts()


def test_constructed_example():
    matrix, other = counted(LABELS, PREDICTIONS, 4)
    assert matrix.tolist() == [[10, 1, 1, 0], [2, 16, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert other.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("other", [False, True])
def test_random_pairs_equal_numpy(other):
    some = 0
    for seed in range(100):
        classes, labels, predictions = random_pair(seed, other)
        found, expected = counted(labels, predictions, classes), numpy_confusion(labels, predictions, classes)
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])
        some += found[1].sum()
    assert (some > 0) == other


def test_random_pairs_equal_torchmetrics():
    torchmetrics = pytest.importorskip("torchmetrics.classification")
    for seed in range(200):
        classes, labels, predictions = random_pair(seed)
        if classes < 2:  # torchmetrics needs two
            continue
        metric = torchmetrics.MulticlassConfusionMatrix(classes, ignore_index=255)
        expected = metric(torch.from_numpy(predictions).long(), torch.from_numpy(labels).long())
        np.testing.assert_array_equal(counted(labels, predictions, classes)[0], expected.numpy())


def test_images_add_up_and_each_has_its_table():
    counts = Confusion(5)
    pairs = [(ABSENT_LABELS, ABSENT_PREDICTIONS), (np.full((2, 4), 4, np.uint8), np.full((2, 4), 4, np.uint8))]
    tables = [counts.add(torch.from_numpy(labels), torch.from_numpy(predictions)) for labels, predictions in pairs]
    assert torch.equal(tables[0] + tables[1], counts.table)
    assert int(tables[1].sum()) == 8
    assert counts.counts()[0].sum() == 15  # without the ignored pixel


def test_counts_above_2_31_and_2_53_stay_exact():
    counts = Confusion(2)
    counts.table[0, 0] = 2**31 - 1
    counts.table[1, 1] = 2**53
    ones = torch.tensor([[0, 0, 1]], dtype=torch.uint8)
    counts.add(ones, ones)
    assert counts.counts()[0].tolist() == [[2**31 + 1, 0], [0, 2**53 + 1]]


def test_large_images_are_counted_in_chunks(monkeypatch):
    monkeypatch.setattr(confusion, "_CHUNK", 7)
    matrix, _ = counted(LABELS, PREDICTIONS, 4)
    assert matrix.tolist() == numpy_confusion(LABELS, PREDICTIONS, 4)[0].tolist()


def test_views_are_counted_like_copies():
    labels, predictions = torch.from_numpy(LABELS).T, torch.from_numpy(PREDICTIONS).T
    assert torch.equal(
        confusion_table(labels, predictions, 4), confusion_table(labels.contiguous(), predictions.contiguous(), 4)
    )


def test_255_classes_and_an_ignored_index_of_one_s_own():
    labels, predictions = torch.tensor([[254, 0, 255]]).byte(), torch.tensor([[254, 255, 3]]).byte()
    counts = Confusion(255)
    counts.add(labels, predictions)
    matrix, other = counts.counts()
    assert (matrix[254, 254], matrix.sum(), other[0], other.sum()) == (1, 1, 1, 1)
    counts = Confusion(2, ignore_index=9)
    counts.add(torch.tensor([[9, 1]]).byte(), torch.tensor([[0, 1]]).byte())
    assert counts.counts()[0].tolist() == [[0, 0], [0, 1]]


def test_a_label_that_is_no_class_is_named():
    counts = Confusion(4)
    counts.add(torch.tensor([[0, 7, 255, 254]]).byte(), torch.zeros(1, 4).byte())
    with pytest.raises(ValueError, match="contain 7, 254, but the classes are 0 to 3 and 255 is ignored"):
        counts.counts()


@pytest.mark.parametrize(
    ("labels", "predictions", "classes"),
    [
        (torch.zeros(2, 2, dtype=torch.int64), torch.zeros(2, 2).byte(), 3),
        (torch.zeros(2, 2).byte(), torch.zeros(2, 3).byte(), 3),
        (torch.zeros(2, 2).byte(), torch.zeros(2, 2).byte(), 256),
    ],
)
def test_other_tensors_are_refused(labels, predictions, classes):
    with pytest.raises(ValueError, match="uint8"):
        confusion_table(labels, predictions, classes)


@pytest.mark.parametrize("count", [histogram, confusion._counted, confusion._scattered])
def test_histograms(count):
    values = torch.tensor([3, 0, 3]).byte()
    found = count(values, 5)
    assert found.tolist() == [1, 0, 0, 2, 0]
    assert found.dtype == torch.int64
    assert count(values[:0], 2).tolist() == [0, 0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_gpu_counts_like_the_cpu():
    _, labels, predictions = random_pair(1)
    pair = [torch.from_numpy(each) for each in (labels, predictions)]
    assert torch.equal(confusion_table(*pair, 25), confusion_table(*(each.cuda() for each in pair), 25).cpu())
