"""Cityscapes: the official mapping of ids, archives and folders, and messages about what is missing."""

import numpy as np
import pytest

from hyperseg.data import CITYSCAPES, DataError, open_dataset
from hyperseg.data.cityscapes import ID_TO_TRAIN_ID, TRAIN_ID_TO_ID, train_id_to_id
from tests.data.test_folder import check
from tests.data.trees import cityscapes_tree, picture, save

IGNORED_IDS = {0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30}


def rows_of_ids() -> np.ndarray:
    """Return 64x128 label ids: row y has the id y % 34, the last row 255."""
    ids = (np.arange(64, dtype=np.uint8) % 34)[:, None].repeat(128, 1)
    ids[63] = 255
    return ids


@pytest.fixture
def town(tmp_path):
    """The root of a data set of one image in train and val, whose label file has every id."""
    for split in ("train", "val"):
        save(
            picture((64, 128), 0),
            tmp_path / f"leftImg8bit/{split}/town/town_000000_000019_leftImg8bit.png",
        )
        save(rows_of_ids(), tmp_path / f"gtFine/{split}/town/town_000000_000019_gtFine_labelIds.png")
    return tmp_path


def test_label_ids_alone_are_enough(town):
    data = open_dataset("cityscapes", town, "val")
    assert [item.name for item in data.items] == ["town_000000_000019"]
    labels = data.labels(0)
    assert (labels != 255).sum() == 35 * 128 == 4480
    assert (labels == 255).sum() == 29 * 128 == 3712
    ids = rows_of_ids()
    for row in range(63):
        assert (labels[row] == (255 if ids[row, 0] in IGNORED_IDS else ID_TO_TRAIN_ID[ids[row, 0]])).all()
    assert (labels[63] == 255).all()


def test_the_mapping_against_cityscapesscripts():
    official = pytest.importorskip("cityscapesscripts.helpers.labels").labels
    mine = {label.id: label.trainId if 0 <= label.trainId < 255 else 255 for label in official}
    assert {**mine, 255: 255} == ID_TO_TRAIN_ID
    named = {label.trainId: (label.name, label.color) for label in official if 0 <= label.trainId < 255}
    assert [named[index] for index in range(19)] == list(zip(CITYSCAPES.classes, CITYSCAPES.colors, strict=True))


def test_ids_for_the_server():
    labels = np.array([[0, 13, 18, 255]], np.uint8)
    assert train_id_to_id(labels).tolist() == [[7, 26, 33, 0]]
    assert [ID_TO_TRAIN_ID[label_id] for label_id in TRAIN_ID_TO_ID] == list(range(19))
    with pytest.raises(ValueError, match="contain 19, which is no train id"):
        train_id_to_id(np.array([[19]], np.uint8))


@pytest.mark.parametrize("files", [("labelIds",), ("labelIds", "labelTrainIds"), ("labelTrainIds",)])
@pytest.mark.parametrize("zipped", [False, True], ids=["folders", "archives"])
def test_files(tmp_path, files, zipped):
    written = cityscapes_tree(tmp_path, files=files, zipped=zipped)
    data = open_dataset("cityscapes", tmp_path, "train+val")
    assert sorted(written) == [item.name for item in data.items]
    assert f"from {files[0]} files" in data.form
    assert ("gtFine_trainvaltest.zip" in data.form) == zipped
    check(data, written)


def test_train_ids_give_the_same_manifest_entry_of_labels(tmp_path):
    cityscapes_tree(tmp_path / "a")
    cityscapes_tree(tmp_path / "b", files=("labelIds", "labelTrainIds"))
    one, other = (open_dataset("cityscapes", tmp_path / name, "val") for name in "ab")
    assert one.manifest()["labels"] == other.manifest()["labels"]
    for index in range(len(one)):
        assert (one.labels(index) == other.labels(index)).all()


def test_label_ids_under_the_name_of_train_ids_are_refused(town):
    path = town / "gtFine/val/town/town_000000_000019_gtFine_labelIds.png"
    renamed = path.with_name(path.name.replace("labelIds", "labelTrainIds"))
    path.rename(renamed)
    with pytest.raises(DataError, match=r"contains 19, 20, .*no class") as error:
        open_dataset("cityscapes", town, "val").labels(0)
    assert str(error.value).startswith(str(renamed))


def test_coarse_labels(tmp_path):
    written = cityscapes_tree(tmp_path, {"train_extra": 2, "train": 1}, kind="gtCoarse")
    for split in ("train_extra", "train"):
        check(open_dataset("cityscapes", tmp_path, split, labels="coarse"), written)
    zipped = cityscapes_tree(tmp_path / "zip", {"train_extra": 2}, kind="gtCoarse", zipped=True)
    check(open_dataset("cityscapes", tmp_path / "zip", "train_extra", labels="coarse"), zipped)
    with pytest.raises(DataError, match="train_extra of cityscapes has coarse labels only; give the option labels=coa"):
        open_dataset("cityscapes", tmp_path, "train_extra")
    with pytest.raises(DataError, match="labels='rough' is not known; give fine or coarse"):
        open_dataset("cityscapes", tmp_path, "train", labels="rough")


def test_the_split_test_is_void_or_has_no_labels(tmp_path):
    cityscapes_tree(tmp_path, {"test": 2})
    data = open_dataset("cityscapes", tmp_path, "test")
    assert "its labels are not published" in data.form
    assert all((data.labels(index) == 255).all() for index in range(2))
    (tmp_path / "gtFine").rename(tmp_path / "other")
    bare = open_dataset("cityscapes", tmp_path, "test")
    assert [item.label for item in bare.items] == [None, None]
    with pytest.raises(DataError, match="has no labels: the split 'test'"):
        bare.labels(0)


def test_a_missing_label_file(tmp_path):
    cityscapes_tree(tmp_path, {"train": 3})
    next((tmp_path / "gtFine").rglob("*_000001_*_labelIds.png")).unlink()
    with pytest.raises(DataError, match=r"1 image \(.*_000001_000019_.*png\) of 3 has no label file") as error:
        open_dataset("cityscapes", tmp_path, "train")
    assert f"looked for CITY/NAME_gtFine_labelIds.png in {tmp_path / 'gtFine'}" in str(error.value)


def test_folders_in_the_wrong_place(tmp_path):
    cityscapes_tree(tmp_path)
    (tmp_path / "gtFine").rename(tmp_path / "moved")
    deep = tmp_path / "gtFine_trainvaltest" / "gtFine"
    deep.parent.mkdir()
    (tmp_path / "moved").rename(deep)
    with pytest.raises(DataError) as error:
        open_dataset("cityscapes", tmp_path, "val")
    message = str(error.value)
    assert f"looked for the folder {tmp_path / 'gtFine' / 'val'} and the archive gtFine_trainvaltest.zip" in message
    assert f"there is {deep / 'val'}: move {deep} into {tmp_path}" in message


def test_one_folder_too_deep_in_itself(tmp_path):
    cityscapes_tree(tmp_path)
    (tmp_path / "gtFine").rename(tmp_path / "moved")
    (tmp_path / "gtFine").mkdir()
    (tmp_path / "moved").rename(tmp_path / "gtFine" / "gtFine")
    with pytest.raises(DataError, match=r"there is .*gtFine/gtFine/val: move"):
        open_dataset("cityscapes", tmp_path, "val")


@pytest.mark.parametrize(
    ("kind", "asked", "hint"),
    [("gtCoarse", "fine", "there are coarse labels"), ("gtFine", "coarse", "there are fine labels")],
)
def test_only_the_other_labels(tmp_path, kind, asked, hint):
    cityscapes_tree(tmp_path, kind=kind)
    with pytest.raises(DataError, match=f"{hint} .*give the option labels="):
        open_dataset("cityscapes", tmp_path, "val", labels=asked)


def test_a_root_inside_the_data_set_and_an_empty_root(tmp_path):
    cityscapes_tree(tmp_path / "data")
    with pytest.raises(DataError, match="the root seems to be inside the data set"):
        open_dataset("cityscapes", tmp_path / "data" / "leftImg8bit", "val")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"the archives are at https://www\.cityscapes-dataset\.com"):
        open_dataset("cityscapes", tmp_path / "empty", "val")
    with pytest.raises(DataError, match="has no split 'valid'; give train, val, test, train_extra"):
        open_dataset("cityscapes", tmp_path / "data", "valid")


def test_an_incomplete_archive(tmp_path):
    cityscapes_tree(tmp_path, zipped=True)
    path = tmp_path / "gtFine_trainvaltest.zip"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"gtFine_trainvaltest\.zip cannot be read as a zip archive .*complete"):
        open_dataset("cityscapes", tmp_path, "val")


def test_counts_that_differ_from_the_published_ones(tmp_path):
    cityscapes_tree(tmp_path)
    assert "val has 2 images, where 500 were published" in open_dataset("cityscapes", tmp_path, "val").form
