"""CamVid in each published form, and which name to give where another form is."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from hyperseg.data import CAMVID, CAMVID_32, DataError, open_dataset
from tests.data.test_folder import check
from tests.data.trees import camvid_tree, picture, save


@pytest.mark.parametrize("lists", [True, False], ids=["lists", "folders"])
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_segnet(tmp_path, lists, suffix):
    """The lists say .png and carry a prefix."""
    written = camvid_tree(tmp_path, suffix=suffix, lists=lists)
    data = open_dataset("camvid", tmp_path, "train+val+test")
    assert len(data) == 7
    assert len(data.label_set) == 11
    assert data.label_set.classes[8] == "Car"
    assert "CamVid as SegNet published it, 11 classes, from the " + ("lists" if lists else "folders") in data.form
    assert "train has 3 images, where 367 were published" in data.form
    check(data, written)
    assert any((data.labels(index) == 255).any() for index in range(7))


def test_a_list_decides_which_images_there_are(tmp_path):
    camvid_tree(tmp_path)
    lines = (tmp_path / "train.txt").read_text().splitlines()
    (tmp_path / "train.txt").write_text("\n".join(lines[:2]) + "\n\n")
    assert len(open_dataset("camvid", tmp_path, "train")) == 2


def test_files_of_a_list_that_are_missing(tmp_path):
    camvid_tree(tmp_path)
    (tmp_path / "val" / "0001TP_000003.png").unlink()
    with pytest.raises(DataError, match=r"missing: 1 file \(/SegNet/CamVid/val/0001TP_000003\.png\)") as error:
        open_dataset("camvid", tmp_path, "val")
    assert f"looked for them in {tmp_path}, with any suffix" in str(error.value)


def test_a_list_of_one_column(tmp_path):
    camvid_tree(tmp_path)
    (tmp_path / "val.txt").write_text("val/0001TP_000003.png\n")
    with pytest.raises(DataError, match=r"line 1 of .*val\.txt is .*expected an image and a label"):
        open_dataset("camvid", tmp_path, "val")


def test_an_unknown_index(tmp_path):
    camvid_tree(tmp_path)
    path = tmp_path / "valannot" / "0001TP_000003.png"
    save(np.full((36, 48), 12, np.uint8), path)
    with pytest.raises(DataError, match="contains 12 ") as error:
        open_dataset("camvid", tmp_path, "val").labels(0)
    assert str(error.value).startswith(str(path))


def test_kaggle_in_a_root_with_dots_and_split_words(tmp_path):
    root = tmp_path / "train.data" / "val_test.v1.0"
    written = camvid_tree(root, "camvid-kaggle")
    data = open_dataset("camvid-kaggle", root, "train+val")
    assert data.label_set == CAMVID
    assert data.label_set.classes[11] == "Void"
    assert "12 classes as in the paper, Void included" in data.form
    check(data, written)
    labels = np.concatenate([data.labels(index).ravel() for index in range(len(data))])
    assert {11, 255} <= set(labels.tolist())  # Void is a class, other colours are ignored


def test_kaggle_without_void(tmp_path):
    written = camvid_tree(tmp_path, "camvid-kaggle")
    data = open_dataset("camvid-kaggle", tmp_path, "test", void="ignore")
    assert len(data.label_set) == 11
    check(data, {name: np.where(labels == 11, 255, labels) for name, labels in written.items()})
    with pytest.raises(DataError, match="void='no' is not known; give class or ignore"):
        open_dataset("camvid-kaggle", tmp_path, "test", void="no")


@pytest.mark.parametrize(("form", "split"), [("camvid-32", "train+val+test"), ("stills", "all")])
def test_32_classes(tmp_path, form, split):
    written = camvid_tree(tmp_path, form)
    data = open_dataset("camvid-32", tmp_path, split)
    assert data.label_set == CAMVID_32
    assert len(data) == 7
    check(data, written)


def test_class_dict_decides_the_order(tmp_path):
    written = camvid_tree(tmp_path, "camvid-32")
    rows = list(zip(CAMVID_32.classes, CAMVID_32.colors, strict=True))[::-1]
    lines = ["name,r,g,b", *(f"{name}, {r}, {g}, {b}" for name, (r, g, b) in rows)]
    (tmp_path / "class_dict.csv").write_text("\n".join(lines))
    data = open_dataset("camvid-32", tmp_path, "val")
    assert data.label_set.classes == CAMVID_32.classes[::-1]
    check(data, {name: 31 - labels for name, labels in written.items()})
    (tmp_path / "class_dict.csv").write_text("name,r,g,b\nSky,1,2\n")
    with pytest.raises(DataError, match=r"class_dict\.csv cannot be used"):
        open_dataset("camvid-32", tmp_path, "val")


def test_unknown_colours_of_32_classes(tmp_path):
    camvid_tree(tmp_path, "camvid-32")
    path = tmp_path / "val_labels" / "0001TP_000003_L.png"
    save(np.full((36, 48, 3), 7, np.uint8), path)
    with pytest.raises(DataError, match=r"1728 of 1728 pixels have colours of no class .*\(7, 7, 7\)"):
        open_dataset("camvid-32", tmp_path, "val").labels(0)
    assert (open_dataset("camvid-32", tmp_path, "val", unknown="ignore").labels(0) == 255).all()


def test_stills_have_splits_only_by_lists(tmp_path):
    written = camvid_tree(tmp_path, "stills")
    with pytest.raises(DataError, match="all images of CamVid without splits; give the split all"):
        open_dataset("camvid-32", tmp_path, "train")
    names = sorted(written)
    (tmp_path / "train.txt").write_text("".join(f"{name}.png\n" for name in names[:3]))
    assert [item.name for item in open_dataset("camvid-32", tmp_path, "train").items] == names[:3]
    (tmp_path / "val.txt").write_text("nothing\n")
    with pytest.raises(DataError, match=r"val\.txt names 1 image \(nothing\) not in 701_StillsRaw_full"):
        open_dataset("camvid-32", tmp_path, "val")


@pytest.mark.parametrize(
    ("form", "asked", "names"),
    [
        ("camvid", "camvid-kaggle", "camvid"),
        ("camvid", "camvid-32", "camvid"),
        ("camvid-kaggle", "camvid", "camvid-kaggle and camvid-32"),
        ("stills", "camvid", "camvid-32"),
    ],
)
def test_another_form_is_named(tmp_path, form, asked, names):
    camvid_tree(tmp_path, form)
    with pytest.raises(DataError, match=f"found those of {names}: give that name") as error:
        open_dataset(asked, tmp_path, "train")
    assert "looked for " in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_an_image_without_labels(tmp_path):
    camvid_tree(tmp_path, "camvid-kaggle")
    save(picture((36, 48), 1), tmp_path / "train" / "new.png")
    with pytest.raises(DataError, match=r"1 image \(.*new\.png\) of 4 has no label file; looked for NAME_L"):
        open_dataset("camvid-kaggle", tmp_path, "train")
    shutil.rmtree(tmp_path / "train_labels")
    with pytest.raises(DataError, match="looked for folders train and train_labels"):
        open_dataset("camvid-kaggle", tmp_path, "train")


def real() -> Path | None:
    """Return SegNet's CamVid in a folder shared/camvid next to this checkout or above it, if it is there."""
    return next((path / "shared/camvid" for path in Path(__file__).parents if (path / "shared/camvid").is_dir()), None)


@pytest.mark.skipif(real() is None, reason="shared/camvid is not there")
def test_the_real_data():
    """The pixels of each class in val, as counted from the published label files."""
    root = real()
    assert root is not None
    counts = {split: len(open_dataset("camvid", root, split)) for split in ("train", "val", "test")}
    assert counts == {"train": 367, "val": 101, "test": 233}
    data = open_dataset("camvid", root, "val")
    assert "published;" not in data.form
    pixels = sum(np.bincount(data.labels(index).ravel(), minlength=256) for index in range(len(data)))
    expected = [1601620, 4531180, 98499, 5053176, 1521751, 2851125, 155724, 537197, 304716, 113531, 387010]
    assert pixels[:11].tolist() == expected
    assert pixels[255] == 297271
    assert data.sample(50)[0].shape == (360, 480, 3)
