"""Predictions that are files: encodings, names, label ids, and what is wrong with them."""

import numpy as np
import pytest
from PIL import Image

from hyperseg.data import open_dataset
from hyperseg.data.cityscapes import TRAIN_ID_TO_ID
from hyperseg.data.drawing import label_image
from hyperseg.data.errors import DataError
from hyperseg.evaluation.predictions import PredictionFolder
from tests.data.trees import cityscapes_tree
from tests.evaluation.pairs import blobs, write_dataset, write_predictions

SIZE = (12, 20)


@pytest.fixture
def dataset(tmp_path):
    return write_dataset(tmp_path, [blobs(seed, SIZE, 5) for seed in range(3)], 5, images=False)


@pytest.fixture
def predicted():
    return [blobs(seed, SIZE, 5, ignored=False) for seed in range(10, 13)]


def read(folder, dataset, index=0, **settings):
    found = PredictionFolder(folder, dataset, **settings)
    return found.prepare(dataset.items[index], None, SIZE)


def sixteen_bits(labels, path):
    Image.fromarray(labels.astype(np.uint16)).save(path)


def palette(labels, path):
    from hyperseg.data import default_label_set

    label_image(labels, default_label_set(5)).save(path)


@pytest.mark.parametrize("ending", ["", "_labels"])
@pytest.mark.parametrize("save", [lambda labels, path: Image.fromarray(labels).save(path), palette, sixteen_bits])
def test_encodings_and_names(tmp_path, dataset, predicted, save, ending):
    folder = tmp_path / "p" / "run 1"
    folder.mkdir(parents=True)
    for item, labels in zip(dataset.items, predicted, strict=True):
        save(labels, folder / f"{item.name}{ending}.png")
    found = PredictionFolder(tmp_path / "p", dataset)
    for item, labels in zip(dataset.items, predicted, strict=True):
        np.testing.assert_array_equal(found.prepare(item, None, SIZE), labels)
    assert found.unused == []


def test_indices_that_are_no_class(tmp_path, dataset):
    stored = np.zeros(SIZE, np.uint16)
    stored[0, :5] = [4, 5, 255, 256, 65535]
    folder = tmp_path / "p"
    folder.mkdir()
    sixteen_bits(stored, folder / f"{dataset.items[0].name}.png")
    assert read(folder, dataset)[0, :6].tolist() == [4, 5, 5, 5, 5, 0]


def test_what_is_wrong_is_named(tmp_path, dataset, predicted):
    folder = write_predictions(tmp_path / "p", dataset, predicted)
    names = [item.name for item in dataset.items]
    (folder / f"{names[0]}.png").unlink()
    with pytest.raises(DataError, match=rf"no prediction for {names[0]} in .*p; {names[0]}\.png or {names[0]}_labels"):
        read(folder, dataset)
    Image.fromarray(np.zeros((12, 20, 3), np.uint8)).save(folder / f"{names[1]}.png")
    with pytest.raises(DataError, match=rf"{names[1]}\.png .*colours"):
        read(folder, dataset, 1)
    Image.fromarray(predicted[2]).save(folder / f"{names[2]}_labels.png")
    with pytest.raises(DataError, match=f"2 predictions for {names[2]}"):
        read(folder, dataset, 2)
    (folder / f"{names[2]}_labels.png").unlink()
    Image.fromarray(predicted[2].T).save(folder / f"{names[2]}.png")
    with pytest.raises(DataError, match=rf"{names[2]}\.png is 20x12 but the labels are 12x20"):
        read(folder, dataset, 2)


def test_folders_without_predictions(tmp_path, dataset):
    with pytest.raises(DataError, match="there is no folder"):
        PredictionFolder(tmp_path / "nowhere", dataset)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no PNG"):
        PredictionFolder(tmp_path / "empty", dataset)


def test_files_of_no_image_are_listed(tmp_path, dataset, predicted):
    folder = write_predictions(tmp_path / "p", dataset, predicted)
    Image.fromarray(predicted[0]).save(folder / "another_image.png")
    Image.fromarray(predicted[0]).save(folder / f"{dataset.items[0].name}_overlay.png")  # as `hyperseg predict` writes
    assert [path.name for path in PredictionFolder(folder, dataset).unused] == ["another_image.png"]


@pytest.fixture
def cityscapes(tmp_path):
    labels = cityscapes_tree(tmp_path / "city", {"val": 2}, size=SIZE)
    return open_dataset("cityscapes", tmp_path / "city", "val"), labels


@pytest.mark.parametrize("name", ["{0}", "{0}_leftImg8bit", "{0}_leftImg8bit_labels", "{0}_pred_labelIds", "{0}x"])
@pytest.mark.parametrize("ids", ["classes", "labelIds"])
def test_cityscapes(tmp_path, cityscapes, name, ids):
    dataset, labels = cityscapes
    table = np.zeros(256, np.uint8)
    table[:19] = TRAIN_ID_TO_ID if ids == "labelIds" else range(19)
    for item in dataset.items:
        path = tmp_path / "p" / item.name.split("_")[0] / f"{name.format(item.name)}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(table[labels[item.name] % 19]).save(path)
    for index, item in enumerate(dataset.items):
        np.testing.assert_array_equal(read(tmp_path / "p", dataset, index, ids=ids), labels[item.name] % 19)


def test_label_ids_without_a_class_are_no_class(tmp_path, cityscapes):
    dataset, _ = cityscapes
    stored = np.full(SIZE, 7, np.uint8)
    stored[0, :5] = [0, 4, 9, 33, 255]
    (tmp_path / "p").mkdir()
    Image.fromarray(stored).save(tmp_path / "p" / f"{dataset.items[0].name}.png")
    assert read(tmp_path / "p", dataset, ids="labelIds")[0, :6].tolist() == [19, 19, 19, 18, 19, 0]


def test_label_ids_are_for_cityscapes(tmp_path, dataset, predicted):
    folder = write_predictions(tmp_path / "p", dataset, predicted)
    with pytest.raises(DataError, match="label ids are Cityscapes'"):
        PredictionFolder(folder, dataset, "labelIds")
    with pytest.raises(DataError, match="'trainIds'"):
        PredictionFolder(folder, dataset, "trainIds")
