"""Contact sheets: which pixels are where, and what happens to images that cannot be used."""

import shutil

import numpy as np
import pytest
from PIL import Image

from hyperseg.data import open_dataset
from hyperseg.data.errors import DataError
from hyperseg.data.labels import VOC
from hyperseg.data.legend import legend_strip
from hyperseg.data.show import by_names, contact_sheet, evenly
from tests.data.trees import folder_tree, save, voc_tree

PAPER = (255, 255, 255)


def sheet_of(data, indices, **options):
    return np.asarray(contact_sheet(data, indices, **options))


def parts(sheet, width=64, height=48, row=0):
    """Return the image and the overlay of a pair at the left of a sheet."""
    top = 45 + row * (height + 42 + 12)
    area = sheet[top : top + height]
    return area[:, 12 : 12 + width], area[:, 12 + width : 12 + 2 * width]


def plain(root, color=(10, 120, 200)):
    """Write one image of one colour; its labels are two classes, the lower quarter is ignored."""
    folder_tree(root, {"train": 1}, size=(48, 64))
    shutil.rmtree(root / "images")
    save(np.full((48, 64, 3), color, np.uint8), root / "images/train/train_0.png")
    labels = np.zeros((48, 64), np.uint8)
    labels[:, 32:] = 1
    labels[36:] = 255
    save(labels, root / "masks/train/train_0.png")
    return open_dataset("folder", root, "train")


def test_image_next_to_its_overlay(tmp_path):
    data = plain(tmp_path)
    image, overlay = parts(sheet_of(data, [0], width=64))
    assert (image == (10, 120, 200)).all()
    for columns, index in ((slice(0, 32), 0), (slice(32, 64), 1)):
        expected = np.rint(0.5 * np.array((10, 120, 200)) + 0.5 * np.array(data.label_set.colors[index]))
        _, overlay = parts(sheet_of(data, [0], width=64, alpha=0.5))
        assert (np.abs(overlay[:36, columns] - expected) <= 1).all()


@pytest.mark.parametrize(("color", "stripe"), [((10, 120, 90), 255), ((200, 220, 210), 0)])
def test_ignored_pixels_are_striped(tmp_path, color, stripe):
    _, overlay = parts(sheet_of(plain(tmp_path, color), [0], width=64))
    ignored = overlay[36:]
    striped = (ignored == stripe).all(2)
    assert ((ignored == color).all(2) | striped).all()
    assert 0.4 < striped.mean() < 0.6
    assert not (overlay[:36] == stripe).all(2).any()


def test_background_keeps_the_image_uncoloured(tmp_path):
    voc_tree(tmp_path)
    data = open_dataset("voc", tmp_path, "val")
    labels = data.labels(0)
    image, overlay = parts(sheet_of(data, [0], width=64))
    shown = np.asarray(Image.fromarray(labels).resize((64, 48), Image.Resampling.NEAREST))
    background = shown == VOC.background
    assert background.any()
    assert (image[background] == overlay[background]).all()
    assert (image[~background] != overlay[~background]).any(1).mean() > 0.9


@pytest.mark.parametrize(("size", "shown"), [((24, 32), (48, 64)), ((64, 16), (64, 16)), ((100, 300), (21, 64))])
def test_aspect_ratio_is_kept(tmp_path, size, shown):
    folder_tree(tmp_path, {"train": 1}, size=size)
    sheet = sheet_of(open_dataset("folder", tmp_path, "train"), [0], width=64)
    colored = (sheet[45:120] != PAPER).any(2)
    rows = np.flatnonzero(colored[:, 12 : 12 + shown[1]].all(1))
    assert len(rows) == shown[0]
    assert not colored[:, 12 + 2 * shown[1] : 24 + 2 * shown[1]][: shown[0]].any()


def test_rows_and_columns(tmp_path):
    folder_tree(tmp_path, {"train": 5}, size=(48, 64))
    data = open_dataset("folder", tmp_path, "train")
    calls = []
    sheet = sheet_of(data, [0, 3, 4], width=64, columns=1, progress=lambda: calls.append(1))
    assert len(calls) == 3
    wanted = data.image(4)
    image, _ = parts(sheet, row=2)
    assert (image == wanted).all()
    wide = sheet_of(data, [0, 3, 4], width=64, columns=3)
    assert wide.shape[1] > 2.5 * (2 * 64 + 12)


def test_legend_names_the_classes_of_all_images(tmp_path, monkeypatch):
    from hyperseg.data import show

    shown = []

    def strip(shares, *rest, **more):
        shown.append(shares)
        return legend_strip(shares, *rest, **more)

    monkeypatch.setattr(show, "legend_strip", strip)
    data = plain(tmp_path)
    sheet_of(data, [0, 0], width=64)
    assert [(share.name, share.pixels, share.share) for share in shown[0]] == [
        ("road", 2 * 36 * 32, 0.5),
        ("car", 2 * 36 * 32, 0.5),
    ]


def test_damaged_image_has_its_place_and_a_message(tmp_path):
    folder_tree(tmp_path, {"train": 3}, size=(48, 64))
    path = tmp_path / "masks/train/train_1.png"
    path.write_bytes(path.read_bytes()[:60])
    errors = []
    data = open_dataset("folder", tmp_path, "train")
    sheet = sheet_of(data, [0, 1, 2], width=64, columns=1, on_error=errors.append)
    assert len(errors) == 1
    assert "train_1.png" in errors[0]
    image, _ = parts(sheet, row=2)
    assert (image == data.image(2)).all()
    message = sheet[45 + 102 : 45 + 102 + 32, 12 : 12 + 128]
    assert (message == (250, 232, 232)).all(2).mean() > 0.5


def test_without_labels(tmp_path):
    folder_tree(tmp_path, {"test": 2}, size=(48, 64))
    shutil.rmtree(tmp_path / "masks")
    data = open_dataset("folder", tmp_path, "test", unmatched="keep")
    image, beside = parts(sheet_of(data, [0, 1], width=64, columns=1))
    assert (image == data.image(0)).all()
    assert (beside == PAPER).all()


@pytest.mark.parametrize("name", ["a" * 300, "x\ny", "日本\u202e"])
def test_any_name(tmp_path, name):
    data = plain(tmp_path)
    data.items = (type(data.items[0])(name, data.items[0].image, data.items[0].label),)
    assert sheet_of(data, [0], width=64).shape[1] == 12 + 128 + 12


@pytest.mark.parametrize("options", [{"width": 63}, {"columns": 0}, {"alpha": 1.5}, {"indices": []}])
def test_numbers_out_of_range(tmp_path, options):
    data = plain(tmp_path)
    with pytest.raises(ValueError, match="give"):
        contact_sheet(data, **{"indices": [0], **options})


def test_evenly():
    assert evenly(3, 101) == [0, 50, 100]
    assert evenly(9, 4) == [0, 1, 2, 3]
    assert evenly(1, 7) == [0]


def test_by_names(tmp_path):
    folder_tree(tmp_path, {"train": 3})
    data = open_dataset("folder", tmp_path, "train")
    assert by_names(data, ["train_2", "images/train/train_0.jpg"]) == [2, 0]
    with pytest.raises(DataError, match="there is no image 'train_9' in folder train; names are such as train_0"):
        by_names(data, ["train_9"])
