"""Opening of data sets by name: roots that are one folder off, and errors of the operating system."""

import errno
import os
from pathlib import Path

import pytest

from hyperseg.data import DataError, open_dataset
from hyperseg.data.splits import available_splits
from tests.data.trees import camvid_tree, cityscapes_tree, folder_tree, voc_tree

TREES = {"camvid": camvid_tree, "cityscapes": cityscapes_tree, "folder": folder_tree, "voc": voc_tree}


@pytest.mark.parametrize("name", TREES)
def test_the_folder_around_the_root_is_named(tmp_path, name):
    TREES[name](tmp_path / "here")
    for opener in (lambda root: open_dataset(name, root, "val"), lambda root: available_splits(name, root)):
        with pytest.raises(DataError, match=r"the data set is in .*here: give that as the root"):
            opener(tmp_path)


@pytest.mark.parametrize(("name", "inside"), [("cityscapes", "gtFine"), ("folder", "images"), ("camvid", "train")])
def test_the_folder_inside_the_root_is_named(tmp_path, name, inside):
    TREES[name](tmp_path / "here")
    with pytest.raises(DataError, match=r"the data set is in .*here: give that as the root"):
        open_dataset(name, tmp_path / "here" / inside, "val")


def test_no_other_folder_is_named_for_another_fault(tmp_path):
    folder_tree(tmp_path / "one")
    folder_tree(tmp_path / "two")
    (tmp_path / "one/masks/val/val_0.png").unlink()
    with pytest.raises(DataError, match="without a mask") as error:
        open_dataset("folder", tmp_path / "one", "val")
    assert "the data set is in" not in str(error.value)


@pytest.mark.parametrize("name", TREES)
def test_a_folder_that_may_not_be_read(tmp_path, name, monkeypatch):
    def denied(path, *args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))

    TREES[name](tmp_path)
    monkeypatch.setattr(Path, "is_file", denied)
    monkeypatch.setattr(Path, "is_dir", lambda path: path == tmp_path or denied(path))
    for opener in (lambda: open_dataset(name, tmp_path, "val"), lambda: available_splits(name, tmp_path)):
        with pytest.raises(DataError, match="may not be read by this user; change its permissions"):
            opener()


def test_a_link_to_itself_is_a_bad_file(tmp_path):
    folder_tree(tmp_path)
    image = next((tmp_path / "images/val").iterdir())
    image.unlink()
    image.symlink_to(image.name)
    data = open_dataset("folder", tmp_path, "val")
    index = [item.image.path for item in data.items].index(str(image))
    with pytest.raises(DataError, match="is a symbolic link that leads back to itself"):
        data.sample(index)


def test_no_root():
    assert len(open_dataset("synthetic", None, "val", images=3)) == 3
    with pytest.raises(DataError, match="the data set camvid has files; give their folder as the root"):
        open_dataset("camvid", None, "val")
