"""The check of data sets: what it counts, what it calls a problem, and that no file ends it."""

import json
import math
import shutil

import numpy as np
import pytest
from PIL import Image

from hyperseg.data import check, open_dataset
from hyperseg.data.check import check_datasets
from hyperseg.data.splits import available_splits
from tests.data.trees import camvid_tree, cityscapes_tree, folder_tree, picture, save, voc_tree


def checked(root, *splits, name="folder", workers=1, **options):
    return check_datasets([open_dataset(name, root, split, **options) for split in splits], workers)


def found(findings):
    return [(finding.kind, finding.split, finding.image) for finding in findings]


def mask(root, labels, name="train_0", split="train"):
    save(np.asarray(labels), root / "masks" / split / f"{name}.png")


@pytest.mark.parametrize("workers", [1, 3])
def test_counts(tmp_path, workers):
    written = folder_tree(tmp_path, {"train": 7, "val": 2})
    calls = []
    datasets = [open_dataset("folder", tmp_path, split) for split in ("train", "val")]
    report = check_datasets(datasets, workers, lambda: calls.append(1))
    assert report.problems == []
    assert len(calls) == 9
    train = [labels for name, labels in written.items() if name.startswith("train")]
    split = report.splits[0]
    for index in range(3):
        assert split.pixels[index] == sum(int((labels == index).sum()) for labels in train)
        assert split.images_with[index] == sum(bool((labels == index).any()) for labels in train)
    assert split.ignored == 7 * 2 * 32
    assert split.labelled_images == 7
    assert split.sizes == {(24, 32): 7}
    assert math.isclose(split.shares.sum(), 1)


def test_median_frequency_weights(tmp_path):
    folder_tree(tmp_path, {"train": 2})
    one = np.zeros((24, 32), np.uint8)  # class 0 has 3/4 of this image, class 1 a quarter
    one[:6] = 1
    two = np.full((24, 32), 2, np.uint8)  # class 2 has 5/6 of the labelled pixels, class 0 the rest
    two[:4], two[4:8] = 255, 0
    two[8:] = 2
    mask(tmp_path, one)
    mask(tmp_path, two, "train_1")
    (split,) = checked(tmp_path, "train").splits
    frequency = [(18 + 4) / (24 + 20), 6 / 24, 16 / 20]  # over the images in which the class occurs
    assert split.weights() == pytest.approx([np.median(frequency) / value for value in frequency])


def test_absent_class_and_ignored_255(tmp_path):
    """Masks of 0 and 255 in which 255 is meant to be the object."""
    folder_tree(tmp_path, {"train": 1, "val": 1}, classes=("background", "object"))
    for split in ("train", "val"):
        binary = np.zeros((24, 32), np.uint8)
        binary[:12] = 255
        mask(tmp_path, binary, f"{split}_0", split)
    report = checked(tmp_path, "train", "val")
    (problem,) = report.problems
    assert problem.kind == check.CLASS
    assert "255 is ignored: 0 labelled pixels of class 1 (object) in train and val; 50.0%" in problem.message
    (split, _) = report.splits
    assert split.weights() == [1.0, None]


def test_class_that_one_split_has_not_is_a_note(tmp_path):
    folder_tree(tmp_path, {"train": 2, "val": 1})
    mask(tmp_path, np.zeros((24, 32), np.uint8), "val_0", "val")
    report = checked(tmp_path, "train", "val")
    assert report.problems == []
    assert found(report.notes) == [(check.CLASS, "val", "")] * 2
    assert report.notes[0].message == "0 labelled pixels of class 1 (car)"


def truncate(root):
    path = root / "images" / "train" / "train_1.jpg"
    path = next((root / "images" / "train").glob("train_1.*")) if not path.exists() else path
    path.write_bytes(path.read_bytes()[:100])


def empty(root):
    (root / "masks" / "train" / "train_1.png").write_bytes(b"")


def unknown_ids(root):
    labels = np.zeros((24, 32), np.uint8)
    labels[3:5], labels[7] = 7, 9
    mask(root, labels, "train_1")


def other_size(root):
    mask(root, np.zeros((24, 31), np.uint8), "train_1")


@pytest.mark.parametrize(
    ("damage", "kind", "words"),
    [
        (truncate, check.IMAGE, ["train_1", "damaged"]),
        (empty, check.LABELS, ["masks/train/train_1.png", "empty (0 bytes)"]),
        (unknown_ids, check.LABELS, ["masks/train/train_1.png", "contains 7, 9", "96 pixels"]),
        (other_size, check.SIZES, ["24x32", "train_1.png is 24x31"]),
    ],
)
@pytest.mark.parametrize("workers", [1, 4])
def test_one_damaged_file_is_a_problem_and_the_rest_is_counted(tmp_path, damage, kind, words, workers):
    folder_tree(tmp_path, {"train": 5})
    damage(tmp_path)
    report = checked(tmp_path, "train", workers=workers)
    assert found(report.problems) == [(kind, "train", "train_1")]
    assert all(word in report.problems[0].message for word in words)
    assert report.splits[0].labelled_images == (5 if kind in (check.IMAGE, check.SIZES) else 4)
    assert sum(report.splits[0].sizes.values()) == (4 if kind == check.IMAGE else 5)


def test_file_that_is_removed_during_the_check(tmp_path):
    folder_tree(tmp_path, {"train": 3})
    data = open_dataset("folder", tmp_path, "train")
    (tmp_path / "masks" / "train" / "train_2.png").unlink()
    report = check_datasets([data])
    assert found(report.problems) == [(check.LABELS, "train", "train_2")]
    assert report.document()["splits"][0]["manifest_hash"] is None


def test_unexpected_exception_of_a_decoder(tmp_path):
    folder_tree(tmp_path, {"train": 2})
    data = open_dataset("folder", tmp_path, "train")

    class Failing:
        def __call__(self, contents, name):
            raise ZeroDivisionError("by zero")

        def description(self):
            return {}

    data.decoder = Failing()
    report = check_datasets([data])
    assert found(report.problems) == [(check.LABELS, "train", f"train_{index}") for index in (0, 1)]
    assert "ZeroDivisionError: by zero" in report.problems[0].message


def test_missing_masks(tmp_path):
    folder_tree(tmp_path, {"train": 3})
    (tmp_path / "masks" / "train" / "train_1.png").unlink()
    report = checked(tmp_path, "train", unmatched="keep")
    assert found(report.problems) == [(check.MISSING, "train", "train_1")]


def test_split_without_labels_is_a_note(tmp_path):
    folder_tree(tmp_path, {"test": 3})
    shutil.rmtree(tmp_path / "masks")
    report = checked(tmp_path, "test", unmatched="keep")
    assert report.problems == []
    assert [note.message for note in report.notes] == ["the split has no labels (images: 3)"]
    json.dumps(report.document(), allow_nan=False)


def test_nothing_labelled(tmp_path):
    folder_tree(tmp_path, {"train": 2, "val": 2, "test": 1})
    void = np.full((24, 32), 255, np.uint8)
    for split, name in (("train", "train_1"), ("val", "val_0"), ("val", "val_1"), ("test", "test_0")):
        mask(tmp_path, void, name, split)
    report = checked(tmp_path, "train", "val", "test")
    assert found(report.problems) == [(check.EMPTY, "val", "")]
    assert report.problems[0].message == "no labelled pixel in 2 label files: all pixels are ignored (255)"
    assert found(report.notes) == [(check.EMPTY, "train", "train_1"), (check.EMPTY, "test", "")]
    val = report.document()["splits"][1]
    assert [row["weight"] for row in val["classes"]] == [None] * 3
    assert val["ignored"]["share"] == 1


def copy(root, one, two):
    """Make image `two` the same as `one`, by its pixels but not its bytes."""
    (source,) = (root / "images" / one.split("_")[0]).glob(f"{one}.*")
    (target,) = (root / "images" / two.split("_")[0]).glob(f"{two}.*")
    with Image.open(source) as image:
        image.load()
    target.unlink()
    image.save(target.with_suffix(".png"), compress_level=1)


def test_duplicates(tmp_path):
    folder_tree(tmp_path, {"train": 3, "val": 3})
    copy(tmp_path, "train_0", "val_1")
    copy(tmp_path, "train_1", "train_2")
    report = checked(tmp_path, "train", "val")
    assert found(report.problems) == [(check.DUPLICATE, "train", "train_0"), (check.DUPLICATE, "train", "train_1")]
    assert report.problems[0].message == "the same pixels as val/val_1, but other labels"
    shutil.copy(tmp_path / "masks/train/train_1.png", tmp_path / "masks/train/train_2.png")
    shutil.copy(tmp_path / "masks/train/train_0.png", tmp_path / "masks/val/val_1.png")
    report = checked(tmp_path, "train", "val")
    assert found(report.problems) == [(check.DUPLICATE, "train", "train_0")]  # in two splits
    assert found(report.notes) == [(check.DUPLICATE, "train", "train_1")]
    assert report.problems[0].message == "the same pixels as val/val_1"


def test_document(tmp_path):
    folder_tree(tmp_path, {"train": 3})
    save(picture((30, 20), 5), tmp_path / "images/train/train_x.png")
    mask(tmp_path, np.full((30, 20), 2, np.uint8), "train_x")
    document = json.loads(json.dumps(checked(tmp_path, "train").document(), allow_nan=False))
    assert document["clean"] is True
    (split,) = document["splits"]
    assert (split["split"], split["images"], split["labelled_images"]) == ("train", 4, 4)
    assert {row["name"] for row in split["classes"]} == {"road", "car", "person"}
    assert split["sizes"] == [
        {"height": 24, "width": 32, "images": 3},
        {"height": 30, "width": 20, "images": 1},
    ]
    assert len(split["manifest_hash"]) == 64
    assert sum(row["share"] for row in split["classes"]) == pytest.approx(1)


def test_computed_data_set():
    report = checked("-", "train", "val", name="synthetic", images=3, size=(32, 64))
    assert {problem.kind for problem in report.problems} <= {check.CLASS}
    assert sum(map(int, report.splits[0].pixels)) + report.splits[0].ignored == 3 * 32 * 64


@pytest.mark.parametrize("form", ["own", "other", "unknown", "rgb"])
def test_palettes_of_other_classes_are_noted(tmp_path, form):
    """The indices count, also if the palette shows the colours of other classes: nobody may overlook that."""
    colors = [(128, 64, 128), (0, 0, 142), (220, 20, 60)]
    folder_tree(tmp_path, {"train": 1})
    (tmp_path / "classes.yaml").write_text(f"classes: [a, b, c]\ncolors: {[list(color) for color in colors]}\n")
    labels = np.repeat(np.arange(3, dtype=np.uint8), 8)[:, None].repeat(32, 1)
    palette = {"own": colors, "other": colors[::-1], "unknown": [(1, 1, 1), (2, 2, 2), (3, 3, 3)]}
    image = Image.fromarray(labels if form != "rgb" else np.array(colors, np.uint8)[labels])
    if form != "rgb":
        image.putpalette([channel for color in palette[form] for channel in color])
    image.save(tmp_path / "masks/train/train_0.png")
    report = checked(tmp_path, "train")
    assert report.splits[0].pixels.tolist() == [256, 256, 256]
    assert report.problems == []
    notes = [note.message for note in report.notes if note.kind == check.PALETTE]
    assert len(notes) == (form == "other")
    assert all("512 of 768 pixels of" in note and "train_0.png have other classes" in note for note in notes)


class TestSplits:
    """Which splits are there."""

    def test_folder(self, tmp_path):
        folder_tree(tmp_path, {"val": 1, "other": 1, "train": 1})
        assert available_splits("folder", tmp_path) == ("train", "val", "other")

    def test_published(self, tmp_path):
        camvid_tree(tmp_path / "camvid")
        assert available_splits("camvid", tmp_path / "camvid") == ("train", "val", "test")
        cityscapes_tree(tmp_path / "cityscapes")
        assert set(available_splits("cityscapes", tmp_path / "cityscapes")) >= {"train", "val"}
        voc_tree(tmp_path / "voc")
        assert available_splits("voc", tmp_path / "voc")[:2] == ("train_aug", "val")

    @pytest.mark.parametrize(
        ("files", "splits"),
        [
            (["labelmap.txt", "ImageSets/Segmentation/b.txt", "ImageSets/Segmentation/train.txt"], ("train", "b")),
            (["class_names.txt", "JPEGImages/a.jpg"], ("all",)),
            (["meta.json", "one/img/a.png", "two/img/a.png", "three/other"], ("one", "two")),
            (["val/class_names.txt", "train/class_names.txt", "notes/a.txt"], ("train", "val")),
        ],
    )
    def test_exports(self, tmp_path, files, splits):
        for name in files:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        assert available_splits("folder", tmp_path) == splits

    def test_none(self, tmp_path):
        with pytest.raises(ValueError, match="there are no files of camvid for the split val: looked for"):
            available_splits("camvid", tmp_path)
