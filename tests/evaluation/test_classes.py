"""Which networks can be scored on which data sets."""

from dataclasses import replace

import pytest

from hyperseg.data import CAMVID, CAMVID_11, CITYSCAPES, VOC, LabelSet, default_label_set
from hyperseg.data.errors import DataError
from hyperseg.evaluation.classes import match_classes


@pytest.mark.parametrize("table", [CITYSCAPES, CAMVID, VOC, default_label_set(7)])
def test_the_same_classes(table):
    assert match_classes(table, replace(table, name="folder")) == []


def test_void_after_the_classes_of_the_data_set():
    (message,) = match_classes(CAMVID, CAMVID_11)
    assert "1 more class than the data set (Void)" in message
    assert "count as wrong" in message


def test_names_are_compared_without_case_and_signs():
    spelled = replace(CITYSCAPES, classes=tuple(name.title().replace(" ", "_") for name in CITYSCAPES.classes))
    assert match_classes(CITYSCAPES, spelled) == []


def test_other_names_are_said():
    other = LabelSet("folder", ("ego", *CITYSCAPES.classes[1:]), CITYSCAPES.colors)
    (message,) = match_classes(CITYSCAPES, other)
    assert "0: road / ego" in message
    assert match_classes(default_label_set(19), CITYSCAPES) == []  # a network that does not name its classes


@pytest.mark.parametrize(
    ("network", "data", "advice"),
    [
        (CITYSCAPES, VOC, "--data cityscapes"),
        (VOC, CITYSCAPES, "--data voc"),
        (CAMVID_11, CAMVID, "trained for"),
        (CAMVID, replace(default_label_set(3), classes=("a", "b", "c")), "--data camvid-kaggle"),
    ],
)
def test_other_classes_are_refused(network, data, advice):
    with pytest.raises(DataError, match="but the data set has") as error:
        match_classes(network, data)
    assert advice in str(error.value)
