"""Data sets of images and masks in folders: pairs by name, and messages about what does not match."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from hyperseg.data import DataError, open_dataset
from hyperseg.data.dataset import Dataset
from tests.data.trees import Labels, class_map, folder_tree, picture, save


def check(data: Dataset, written: Labels) -> None:
    """Assert that a data set has the labels that were written, and images of their size."""
    for index, item in enumerate(data.items):
        image, labels = data.sample(index)
        assert (labels == written[item.name]).all()
        assert image.shape == (*labels.shape, 3)


def test_splits(tmp_path):
    written = folder_tree(tmp_path, {"train": 3, "val": 2})
    train = open_dataset("folder", tmp_path, "train")
    assert [item.name for item in train.items] == ["train_0", "train_1", "train_2"]
    assert train.label_set.classes == ("road", "car", "person")
    assert "classes.yaml with 3 classes" in train.form
    both = open_dataset("folder", tmp_path, "train+val")
    assert len(both) == 5
    check(both, written)
    check(pickle.loads(pickle.dumps(both)), written)


def test_colour_masks(tmp_path):
    written = folder_tree(tmp_path, colors=[[128, 64, 128], [0, 0, 142], [220, 20, 60]])
    check(open_dataset("folder", tmp_path, "val"), written)


def test_settings_of_the_labels(tmp_path):
    folder_tree(tmp_path, {"train": 1}, label_map={0: 1, 1: 0, 2: "ignore"})
    data = open_dataset("folder", tmp_path, "train")
    stored = class_map((24, 32), 3, 0)
    table = np.arange(256, dtype=np.uint8)
    table[:3] = 1, 0, 255
    assert (data.labels(0) == table[stored]).all()


@pytest.mark.parametrize("ending", ["_mask", "-label", "_labelIds", "_L", "_gt", ".seg", ".jpg"])
def test_endings_of_masks(tmp_path, ending):
    written = folder_tree(tmp_path, {"train": 2})
    for path in (tmp_path / "masks" / "train").iterdir():
        path.rename(path.with_name(f"{path.stem}{ending}.png"))
    check(open_dataset("folder", tmp_path, "train"), written)


def test_an_image_that_is_called_like_the_mask_of_another(tmp_path):
    written = folder_tree(tmp_path, {"train": 1})
    save(picture((24, 32), 5), tmp_path / "images" / "train" / "train_0_mask.jpg")
    written["train_0_mask"] = class_map((24, 32), 3, 9)
    save(written["train_0_mask"], tmp_path / "masks" / "train" / "train_0_mask.png")
    check(open_dataset("folder", tmp_path, "train"), written)


def test_two_masks_of_one_image(tmp_path):
    folder_tree(tmp_path, {"train": 1})
    masks = tmp_path / "masks" / "train"
    shutil.copy(masks / "train_0.png", masks / "train_0_mask.png")
    with pytest.raises(DataError, match=r"train_0\.jpg has two masks, .*train_0\.png and .*train_0_mask\.png"):
        open_dataset("folder", tmp_path, "train")


def test_two_images_of_one_name(tmp_path):
    folder_tree(tmp_path, {"train": 1})
    save(picture((24, 32), 5), tmp_path / "images" / "train" / "train_0.png")
    with pytest.raises(DataError, match=r"two images belong to train_0: .*\.jpg and .*\.png"):
        open_dataset("folder", tmp_path, "train")


def test_unmatched_files(tmp_path):
    written = folder_tree(tmp_path, {"train": 4})
    masks = tmp_path / "masks" / "train"
    (masks / "train_1.png").rename(masks / "other.png")
    (masks / "train_3.png").unlink()
    with pytest.raises(DataError) as error:
        open_dataset("folder", tmp_path, "train")
    message = str(error.value)
    assert f"2 images ({tmp_path / 'images' / 'train' / 'train_1.jpg'}" in message
    assert f"train_1.png, train_1_mask.png and the like in {masks}" in message
    assert f"1 mask ({masks / 'other.png'}) without an image" in message
    skipped = open_dataset("folder", tmp_path, "train", unmatched="skip")
    assert [item.name for item in skipped.items] == ["train_0", "train_2"]
    assert "left out 2 images" in skipped.form
    check(skipped, written)
    kept = open_dataset("folder", tmp_path, "train", unmatched="keep")
    assert [item.label is None for item in kept.items] == [False, True, False, True]
    assert not kept.has_labels


def test_a_split_without_masks(tmp_path):
    folder_tree(tmp_path, {"train": 1, "test": 2})
    shutil.rmtree(tmp_path / "masks" / "test")
    with pytest.raises(DataError, match="give the option unmatched=keep"):
        open_dataset("folder", tmp_path, "test")
    assert len(open_dataset("folder", tmp_path, "test", unmatched="keep")) == 2


def test_hidden_and_other_files_are_left_out(tmp_path):
    written = folder_tree(tmp_path, {"train": 2})
    for folder in ("images", "masks"):
        for name in (".DS_Store", "._train_0.jpg", ".hidden.png", "Thumbs.db", "notes.txt"):
            (tmp_path / folder / "train" / name).write_bytes(b"x")
        (tmp_path / folder / ".cache").mkdir()
    check(open_dataset("folder", tmp_path, "train"), written)


def test_kinds_of_images(tmp_path):
    written = folder_tree(tmp_path, {"train": 3})
    images = tmp_path / "images" / "train"
    for number, suffix in enumerate((".JPEG", ".webp", ".bmp")):
        (images / f"train_{number}.jpg").unlink()
        save(picture((24, 32), number), images / f"train_{number}{suffix}")
    check(open_dataset("folder", tmp_path, "train"), written)
    (images / "photo.nef").write_bytes(b"x")
    with pytest.raises(DataError, match=r"photo\.nef cannot be used: it is a raw photo"):
        open_dataset("folder", tmp_path, "train")


def test_a_size_mismatch_names_both_files(tmp_path):
    folder_tree(tmp_path, {"train": 1})
    save(picture((24, 30), 0), tmp_path / "images" / "train" / "train_0.jpg")
    with pytest.raises(DataError, match=r"train_0\.jpg is 24x30 but .*train_0\.png is 24x32"):
        open_dataset("folder", tmp_path, "train").sample(0)


@pytest.mark.parametrize(
    ("change", "split", "message"),
    [
        (lambda root: (root / "classes.yaml").unlink(), "train", r"no classes\.yaml .*nor an export of labelme"),
        (lambda root: shutil.rmtree(root / "images"), "train", "no folders in .*images; images are in images/SPLIT"),
        (lambda root: None, "tset", "has no split 'tset'; give train"),
        (lambda root: None, "train+", r"'train\+' is no split"),
        (lambda root: None, "train+train", "has a part twice"),
        (lambda root: (root / "images" / "train" / "city").mkdir(), "train", "has the folder city"),
        (lambda root: shutil.rmtree(root), "train", "does not exist"),
    ],
)
def test_layouts_that_are_refused(tmp_path, change, split, message):
    root = tmp_path / "data"
    folder_tree(root, {"train": 1})
    change(root)
    with pytest.raises(DataError, match=message) as error:
        open_dataset("folder", root, split)
    assert str(root) in str(error.value)


def test_an_empty_split(tmp_path):
    folder_tree(tmp_path, {"train": 1})
    for folder in ("images", "masks"):
        for path in (tmp_path / folder / "train").iterdir():
            path.unlink()
    with pytest.raises(DataError, match="the split 'train' of folder is empty"):
        open_dataset("folder", tmp_path, "train")


def test_unknown_names_and_options(tmp_path):
    folder_tree(tmp_path)
    with pytest.raises(ValueError, match="there is no data set 'kitti'; give one of cityscapes, "):
        open_dataset("kitti", tmp_path, "train")
    with pytest.raises(ValueError, match="folder has no option 'size'; its options are unmatched"):
        open_dataset("folder", tmp_path, "train", size=3)
    with pytest.raises(DataError, match="unmatched='drop' is not known"):
        open_dataset("folder", tmp_path, "train", unmatched="drop")
    with pytest.raises(DataError, match="is a file"):
        open_dataset("folder", Path(__file__), "train")
