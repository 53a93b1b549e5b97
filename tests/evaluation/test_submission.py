"""Files of predictions: palette PNGs, Cityscapes' label ids, PASCAL VOC's folders."""

import numpy as np
import pytest
from PIL import Image

from hyperseg.data import CAMVID, CITYSCAPES, VOC
from hyperseg.data.dataset import Dataset, Item
from hyperseg.data.errors import DataError
from hyperseg.data.files import DataFile
from hyperseg.data.masks import identity
from hyperseg.evaluation.submission import PalettePredictions, submission


def dataset(table, name):
    item = Item(name, DataFile(f"{name}.png"), None)
    return Dataset(table.name, "test", "", table, [item], identity(len(table)))


def written(writer, item, labels):
    path = writer.write(item, labels)
    assert path == writer.path(item)
    with Image.open(path) as image:
        return path, image.mode, np.asarray(image), image.getpalette()


def test_palette_pngs(tmp_path):
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    item = dataset(CAMVID, "0001TP_1").items[0]
    path, mode, values, colors = written(PalettePredictions(tmp_path, CAMVID), item, labels)
    assert path == tmp_path / "0001TP_1.png"
    assert mode == "P"
    np.testing.assert_array_equal(values, labels)
    assert tuple(colors[3 * 8 : 3 * 8 + 3]) == CAMVID.colors[8]


def test_cityscapes(tmp_path):
    data = dataset(CITYSCAPES, "berlin_000000_000019")
    labels = np.arange(19, dtype=np.uint8)[None]
    path, mode, values, _ = written(submission(tmp_path, data), data.items[0], labels)
    assert path.name.startswith("berlin_000000_000019")
    assert path.parent == tmp_path
    assert mode == "L"
    assert values[0].tolist() == [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]


def test_what_is_no_class_is_unlabeled_and_other_names_stay_apart(tmp_path):
    data = dataset(CITYSCAPES, "drive_1_b_000")
    path, _, values, _ = written(submission(tmp_path, data), data.items[0], np.array([[18, 19, 255]], np.uint8))
    assert path.name.startswith("drive_1_b_000")
    assert values.tolist() == [[33, 0, 0]]
    data = dataset(VOC, "x")
    assert written(submission(tmp_path, data), data.items[0], np.array([[20, 21]], np.uint8))[2].tolist() == [[20, 255]]


def test_voc(tmp_path):
    data = dataset(VOC, "2008_000001")
    labels = np.arange(21, dtype=np.uint8)[None]
    path, mode, values, colors = written(submission(tmp_path, data), data.items[0], labels)
    assert path == tmp_path / "results/VOC2012/Segmentation/comp6_test_cls/2008_000001.png"
    assert mode == "P"
    np.testing.assert_array_equal(values, labels)
    assert colors[: 3 * 21] == [value for color in VOC.colors for value in color]


def test_other_classes_have_no_server(tmp_path):
    with pytest.raises(DataError, match="no server for the classes of camvid"):
        submission(tmp_path, dataset(CAMVID, "x"))
