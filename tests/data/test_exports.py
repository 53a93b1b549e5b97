"""Exports of labelme, CVAT and Supervisely are recognised by their files."""

import json
import shutil

import numpy as np
import pytest

from hyperseg.data import DataError, open_dataset
from tests.data.test_folder import check
from tests.data.trees import cvat_tree, folder_tree, labelme_tree, picture, save, supervisely_tree


@pytest.mark.parametrize("newer", [False, True])
def test_labelme(tmp_path, newer):
    written = labelme_tree(tmp_path, newer)
    data = open_dataset("folder", tmp_path, "all")
    assert data.form.startswith("exported by labelme, 3 classes, labels from SegmentationClass")
    assert data.label_set.classes == ("_background_", "road", "car")
    assert data.label_set.background == 0
    assert len(data) == 3
    check(data, written)
    assert (data.labels(0) == 255).any()


def test_labelme_lists_an_ignored_class(tmp_path):
    written = labelme_tree(tmp_path)
    (tmp_path / "class_names.txt").write_text("__ignore__\n_background_\nroad\ncar\n")
    check(open_dataset("folder", tmp_path, "all"), written)


def test_labelme_has_splits_as_folders_only(tmp_path):
    written = {**labelme_tree(tmp_path / "train"), **labelme_tree(tmp_path / "val")}
    shutil.rmtree(tmp_path / "val" / "JPEGImages")
    shutil.rmtree(tmp_path / "val" / "SegmentationClassPNG")
    for name in ("x", "y"):
        written[name] = written["frame_0"]
        save(picture((24, 32), 0), tmp_path / "val" / "JPEGImages" / f"{name}.jpg")
        save(written["frame_0"], tmp_path / "val" / "SegmentationClassPNG" / f"{name}.png")
    both = open_dataset("folder", tmp_path, "train+val")
    assert len(both) == 5
    check(both, written)
    with pytest.raises(DataError, match="has no splits; give the split all, or put one export per split in folders"):
        open_dataset("folder", tmp_path / "train", "train")
    (tmp_path / "val" / "class_names.txt").write_text("_background_\nroad\nbus\n")
    with pytest.raises(DataError, match=r"val has other classes than .*train"):
        open_dataset("folder", tmp_path, "train+val")


@pytest.mark.parametrize("palette_images", [False, True])
def test_cvat(tmp_path, palette_images):
    written = cvat_tree(tmp_path, palette_images)
    train = open_dataset("folder", tmp_path, "train")
    assert train.form.startswith("exported by CVAT, 3 classes, lists train, in")
    assert [item.name for item in train.items] == ["frame 0", "frame 1"]
    assert train.label_set.colors[2] == (128, 64, 128)
    assert train.label_set.background == 0
    everything = open_dataset("folder", tmp_path, "all")
    assert len(everything) == len(open_dataset("folder", tmp_path, "train+val")) == 3
    check(everything, written)


def test_cvat_index_masks_and_ignored_colours(tmp_path):
    written = cvat_tree(tmp_path)
    for name, labels in written.items():
        save(labels, tmp_path / "SegmentationClass" / f"{name}.png")
    check(open_dataset("folder", tmp_path, "all"), written)
    with open(tmp_path / "labelmap.txt", "a") as file:
        file.write("ignored:224,224,192::\n")
    save(np.full((24, 32, 3), (224, 224, 192), np.uint8), tmp_path / "SegmentationClass" / "frame 0.png")
    data = open_dataset("folder", tmp_path, "train")
    assert len(data.label_set) == 3
    assert (data.labels(0) == 255).all()


def test_cvat_with_files_missing(tmp_path):
    cvat_tree(tmp_path)
    (tmp_path / "SegmentationClass" / "frame 0.png").unlink()
    with pytest.raises(DataError, match=r"1 image \(.*frame 0\.png\) of 2 without a mask"):
        open_dataset("folder", tmp_path, "train")
    assert len(open_dataset("folder", tmp_path, "train", unmatched="skip")) == 1
    (tmp_path / "JPEGImages" / "frame 0.png").unlink()
    with pytest.raises(DataError, match=r"missing in .*JPEGImages: 1 image \(frame 0\)"):
        open_dataset("folder", tmp_path, "train")
    shutil.rmtree(tmp_path / "JPEGImages")
    with pytest.raises(DataError, match="export from CVAT with the images saved"):
        open_dataset("folder", tmp_path, "train")


@pytest.mark.parametrize("line", ["car:1,2::", "car::::", "car:1,2,256::", "car"])
def test_cvat_labelmap_without_colours(tmp_path, line):
    cvat_tree(tmp_path)
    (tmp_path / "labelmap.txt").write_text(f"# label\nroad:1,2,3::\n{line}\n")
    with pytest.raises(DataError, match=r"labelmap\.txt has the line .*expected name:R,G,B"):
        open_dataset("folder", tmp_path, "train")


@pytest.mark.parametrize("machine", [True, False])
def test_supervisely(tmp_path, machine):
    written = supervisely_tree(tmp_path, machine)
    data = open_dataset("folder", tmp_path, "all")
    assert data.form.startswith("exported by Supervisely, 3 classes, labels from masks")
    assert "black is background" in data.form
    assert data.label_set.classes == ("background", "kiwi", "lemon")
    check(data, written)
    assert len(open_dataset("folder", tmp_path, "ds2")) == 1
    assert machine or data.label_set.colors[2] == (171, 205, 239)


def test_supervisely_masks_that_an_optimiser_made_grey(tmp_path):
    written = supervisely_tree(tmp_path)
    save(written["photo0"], tmp_path / "ds1" / "masks_machine" / "photo0.png")
    check(open_dataset("folder", tmp_path, "all"), written)


def test_supervisely_data_sets_with_images_of_one_name(tmp_path):
    supervisely_tree(tmp_path)
    for folder in ("img", "masks_machine"):
        for path in (tmp_path / "ds1" / folder).glob("photo0*"):
            shutil.copy(path, tmp_path / "ds2" / folder / path.name)
    names = [item.name for item in open_dataset("folder", tmp_path, "all").items]
    assert names == ["ds1_photo0", "ds1_photo1", "ds2_photo0", "ds2_photo2"]


@pytest.mark.parametrize(
    ("colors", "message"),
    [
        ([], "expected a mapping"),
        ({"kiwi": [1, 1]}, "cannot be used"),
        ({"kiwi": [1, 1, 300]}, "kiwi has the colour"),
        ({"kiwi": [1, 1, 1], "lemon": [1, 1, 1]}, "one colour for two classes"),
        ({"background": [5, 5, 5]}, "a class background that is not black"),
    ],
)
def test_supervisely_colours_that_cannot_be_used(tmp_path, colors, message):
    supervisely_tree(tmp_path)
    (tmp_path / "obj_class_to_machine_color.json").write_text(json.dumps(colors))
    with pytest.raises(DataError, match=rf"obj_class_to_machine_color\.json.*{message}"):
        open_dataset("folder", tmp_path, "all")


def test_classes_yaml_takes_precedence(tmp_path):
    labelme_tree(tmp_path)
    written = folder_tree(tmp_path, {"train": 1})
    check(open_dataset("folder", tmp_path, "train"), written)
