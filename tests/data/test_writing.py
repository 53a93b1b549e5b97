"""Data sets written as folders of images and masks: what is read back is what was written."""

import numpy as np
import pytest

from hyperseg.data import DataError, open_dataset
from hyperseg.data.labels import LabelSet
from hyperseg.data.writing import classes_yaml, write_folder
from tests.data.trees import camvid_tree, folder_tree, voc_tree


def assert_equal(one, two):
    assert [item.name for item in one.items] == [item.name for item in two.items]
    assert (one.label_set.classes, one.label_set.colors) == (two.label_set.classes, two.label_set.colors)
    for index in range(len(one)):
        for a, b in zip(one.sample(index), two.sample(index), strict=True):
            assert (a == b).all()


@pytest.mark.parametrize(
    ("tree", "name", "splits"),
    [
        (camvid_tree, "camvid", ["train", "val"]),
        (voc_tree, "voc", ["train_aug"]),
        (folder_tree, "folder", ["val"]),
        (None, "synthetic", ["train", "test"]),
    ],
)
def test_round_trip(tmp_path, tree, name, splits):
    options = {} if tree else {"images": 2, "size": (32, 64)}
    if tree:
        tree(tmp_path / "source")
    data = [open_dataset(name, tmp_path / "source", split, **options) for split in splits]
    calls = []
    assert write_folder(data, tmp_path / "copy", progress=lambda: calls.append(1)) == sum(map(len, data)) == len(calls)
    for one in data:
        copy = open_dataset("folder", tmp_path / "copy", one.split)
        assert_equal(copy, one)
        assert copy.label_set.background == one.label_set.background


def test_joined_splits_and_missing_labels(tmp_path):
    camvid_tree(tmp_path / "source")
    data = open_dataset("camvid", tmp_path / "source", "train+val")
    write_folder([data], tmp_path / "copy")
    assert_equal(open_dataset("folder", tmp_path / "copy", "train_val"), data)
    voc_tree(tmp_path / "voc")
    test = open_dataset("voc", tmp_path / "voc", "test")
    write_folder([test], tmp_path / "other")
    assert len(open_dataset("folder", tmp_path / "other", "test", unmatched="keep")) == len(test)


def test_damaged_file_is_left_out(tmp_path):
    folder_tree(tmp_path / "source", {"train": 3})
    (tmp_path / "source/masks/train/train_1.png").write_bytes(b"no image")
    errors = []
    assert write_folder([open_dataset("folder", tmp_path / "source", "train")], tmp_path / "copy", errors.append) == 2
    assert len(errors) == 1
    names = [item.name for item in open_dataset("folder", tmp_path / "copy", "train").items]
    assert names == ["train_0", "train_2"]


def test_what_is_there_is_not_mixed_with_other_data(tmp_path):
    folder_tree(tmp_path / "source")
    train, val = (open_dataset("folder", tmp_path / "source", split) for split in ("train", "val"))
    write_folder([train], tmp_path / "copy")
    with pytest.raises(DataError, match=r"there are files in .*train; remove them"):
        write_folder([train], tmp_path / "copy")
    write_folder([val], tmp_path / "copy")
    with pytest.raises(DataError, match=r"classes.yaml has other classes"):
        write_folder([open_dataset("synthetic", "-", "test", images=1)], tmp_path / "copy")
    assert not (tmp_path / "copy/images/test").exists()


def test_unfinished_folder_cannot_be_opened(tmp_path):
    folder_tree(tmp_path / "source")

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_folder([open_dataset("folder", tmp_path / "source", "train")], tmp_path / "copy", progress=stop)
    with pytest.raises(DataError):
        open_dataset("folder", tmp_path / "copy", "train")
    assert not [path for path in (tmp_path / "copy").rglob("*") if not path.is_dir() or path.name.startswith(".")]


def test_what_a_killed_run_left_is_not_in_the_next(tmp_path):
    folder_tree(tmp_path / "source")
    left = tmp_path / "copy/images/.train.partial/old.png"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"")
    data = open_dataset("folder", tmp_path / "source", "train")
    write_folder([data], tmp_path / "copy")
    assert not left.exists()
    assert_equal(open_dataset("folder", tmp_path / "copy", "train"), data)


def test_class_names_with_a_meaning_in_yaml(tmp_path):
    from hyperseg.data.classes_file import read_classes

    names = ("no", "1:30", "a: b", "'", "été", "null", "# x")
    table = LabelSet("names", names, tuple((index, 0, 0) for index in range(len(names))))
    path = tmp_path / "classes.yaml"
    path.write_text(classes_yaml(table), encoding="utf-8")
    found = read_classes(path).label_set
    assert (found.classes, found.colors) == (table.classes, table.colors)
    twice = LabelSet("twice", ("a", "b"), ((1, 1, 1), (1, 1, 1)))
    path.write_text(classes_yaml(twice), encoding="utf-8")
    assert len(np.unique(read_classes(path).label_set.colors, axis=0)) == 2
