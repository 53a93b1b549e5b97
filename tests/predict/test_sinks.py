"""Label PNGs read back pixel by pixel, overlays, legends, and no half-written files."""

import errno
import os
import stat
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hyperseg.data import CAMVID, CITYSCAPES, VOC, colorize, palette
from hyperseg.data.legend import legend_strip, percent
from hyperseg.predict import (
    Frame,
    LabelSink,
    OutputError,
    OverlaySink,
    Prediction,
    SinkError,
    class_shares,
    label_image,
    overlay,
    save_image,
    with_legend,
)


@pytest.fixture
def prediction(images, voc_labels):
    labels = voc_labels.copy()
    labels[:10] = 255
    return Prediction(Frame("voc", images["voc"]), labels, VOC)


def test_label_png_read_back(prediction, tmp_path):
    path = LabelSink(tmp_path / "new" / "folder").write(prediction)
    assert path == tmp_path / "new" / "folder" / "voc_labels.png"
    image = Image.open(path)
    assert image.mode == "P"
    assert image.getpalette() == palette(VOC)
    assert np.array_equal(np.asarray(image), prediction.labels), "a pixel is its class"
    assert np.array_equal(np.asarray(image.convert("RGB")), colorize(prediction.labels, VOC))


@pytest.mark.parametrize("table", [CITYSCAPES, CAMVID])
def test_label_png_of_every_index(table, tmp_path):
    labels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.open(
        LabelSink(tmp_path).write(Prediction(Frame("all", np.zeros((16, 16, 3), np.uint8)), labels, table))
    )
    assert np.array_equal(np.asarray(image), labels)
    assert np.asarray(image.convert("RGB")).reshape(-1, 3)[: len(table)].tolist() == [list(c) for c in table.colors]


def test_label_png_of_strided_labels(prediction, tmp_path):
    turned = Prediction(Frame("t", prediction.frame.image), prediction.labels[::-1, ::2], VOC)
    assert np.array_equal(np.asarray(Image.open(LabelSink(tmp_path).write(turned))), prediction.labels[::-1, ::2])


def test_overlay(prediction):
    image, labels = prediction.frame.image, prediction.labels
    blended = overlay(image, labels, VOC, alpha=0.25)
    assert blended.dtype == np.uint8
    kept = (labels == 0) | (labels == 255)
    assert np.array_equal(blended[kept], image[kept]), "background and ignored pixels keep the image"
    expected = np.rint(image[~kept] * 0.75 + colorize(labels, VOC)[~kept] * 0.25)
    assert np.abs(blended[~kept] - expected).max() <= 1, "float32 may round a half the other way"
    assert np.array_equal(overlay(image, labels, VOC, alpha=0), image)
    assert np.array_equal(overlay(image, labels, VOC, alpha=1)[~kept], colorize(labels, VOC)[~kept])


def test_overlay_colours_class_0_where_it_is_no_background(images):
    image = images["rocket"]
    labels = np.zeros(image.shape[:2], np.uint8)
    assert (overlay(image, labels, CITYSCAPES, alpha=1) == (128, 64, 128)).all()


def test_overlay_of_wrong_arguments(images):
    with pytest.raises(ValueError, match="their sizes must match"):
        overlay(images["voc"], np.zeros((5, 5), np.uint8), VOC)
    labels = np.zeros((375, 500), np.uint8)
    for alpha in (1.5, -0.1, float("nan")):
        with pytest.raises(ValueError, match=rf"alpha is {alpha}; give 0 \(image only\) to 1"):
            overlay(images["voc"], labels, VOC, alpha=alpha)
        with pytest.raises(ValueError, match=f"alpha is {alpha}"):
            OverlaySink("out", alpha=alpha)
    with pytest.raises(ValueError, match=r"an image is uint8 \[H, W, 3\] RGB; got float64"):
        overlay(images["voc"] / 255, labels, VOC)
    with pytest.raises(ValueError, match="kind is 'jpeg'; give 'png' or 'jpg'"):
        OverlaySink("out", kind="jpeg")
    for sink in (LabelSink, OverlaySink):
        with pytest.raises(ValueError, match="the name of the output folder is empty"):
            sink("")


@pytest.mark.parametrize("labels", [np.array([[300]]), np.zeros((1, 1, 1), np.uint8), np.zeros((2, 2), np.float32)])
def test_labels_of_another_form(labels):
    """300 as uint8 would be another class."""
    for function in (
        lambda: label_image(labels, VOC),
        lambda: class_shares(labels, VOC),
        lambda: overlay(np.zeros((*labels.shape[:2], 3), np.uint8), labels, VOC),
    ):
        with pytest.raises(
            ValueError, match=r"labels are uint8 \[H, W\]; got .*; convert them with \.astype\(np\.uint8\)"
        ):
            function()


@pytest.mark.parametrize("kind", ["png", "jpg"])
@pytest.mark.parametrize("legend", [False, True])
def test_overlay_file(prediction, tmp_path, kind, legend):
    path = OverlaySink(tmp_path, alpha=0.5, legend=legend, kind=kind).write(prediction)
    assert path == tmp_path / f"voc_overlay.{kind}"
    image = Image.open(path)
    assert image.format == {"png": "PNG", "jpg": "JPEG"}[kind]
    written = np.asarray(image)
    assert written.shape[1:] == (500, 3)
    assert (written.shape[0] > 375) == legend
    expected = overlay(prediction.frame.image, prediction.labels, VOC, 0.5)
    assert np.abs(written[:375].astype(int) - expected).mean() < (3 if kind == "jpg" else 0.001)


@pytest.mark.parametrize("size", [(1, 1), (33, 21), (375, 500), (1281, 1920), (512, 40), (40, 900)])
def test_legend_names_the_classes_present(size):
    """The strip has the colours of the largest classes present, of all if it is not higher than the image for them."""
    height, width = size
    labels = (np.arange(height * width) % 19).astype(np.uint8).reshape(size)
    shares = class_shares(labels, CITYSCAPES)
    image = with_legend(np.full((*size, 3), 7, np.uint8), shares, CITYSCAPES)
    assert (image[:height, :width] == 7).all()
    strip = image[height:]
    named = [((strip == CITYSCAPES.colors[share.index]).all(axis=2).sum() > 60) for share in shares]
    assert named == sorted(named, reverse=True)
    one, two = (legend_strip(shares[:count], CITYSCAPES, 1, min(size)).shape[0] for count in (1, 2))
    assert strip.shape[0] <= max(height, two)
    assert all(named) or strip.shape[0] > height - (two - one), "no line is left free"
    others = set(range(19)) - set(labels.flat)
    assert not any((strip == CITYSCAPES.colors[index]).all(axis=2).sum() > 60 for index in others)
    ink = (strip < 90).all(axis=2)
    assert not ink[:, -2:].any(), "no text runs over the edge"
    assert ink.any()


def test_legend_columns_do_not_overlap():
    labels = np.arange(19, dtype=np.uint8).reshape(1, 19)
    shares = class_shares(labels, CITYSCAPES)
    narrow, wide = (legend_strip(shares, CITYSCAPES, width, 400) for width in (150, 2000))
    assert narrow.shape[0] > 3 * wide.shape[0]
    assert wide.shape[1] == 2000


@pytest.mark.parametrize(
    ("share", "text"),
    [(1, "100.0%"), (0.9999, ">99.9%"), (0.3329, "33.3%"), (0.001, "0.1%"), (1e-6, "<0.1%"), (0, "0.0%")],
)
def test_percent(share, text):
    assert percent(share) == text


def test_files_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    save_image(Image.new("RGB", (4, 4), "red"), path)
    before = path.read_bytes()

    def fails(self, file, **options):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fails)
    with pytest.raises(OSError, match="disk full"):
        save_image(Image.new("RGB", (4, 4), "blue"), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.png"]


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_files_follow_the_umask(tmp_path):
    old = os.umask(0o022)
    try:
        save_image(Image.new("RGB", (4, 4)), tmp_path / "a.png")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a.png").stat().st_mode) == 0o644


def test_a_suffix_decides_the_format(tmp_path):
    image = Image.new("RGB", (4, 4))
    for name, form in {"a.png": "PNG", "a.PNG": "PNG", "a.jpg": "JPEG", "a.JPEG": "JPEG"}.items():
        assert Image.open(save_image(image, str(tmp_path / name))).format == form
    with pytest.raises(ValueError, match=r"a\.webp does not end in \.png, \.jpg or \.jpeg"):
        save_image(image, tmp_path / "a.webp")


# ---------------------------------------------------------------------------------------------------------------------
# Outputs that cannot be written


@pytest.fixture
def small(tmp_path):
    return Prediction(Frame("a", np.zeros((4, 6, 3), np.uint8), tmp_path / "a.jpg"), np.zeros((4, 6), np.uint8), VOC)


@pytest.mark.parametrize("sink", [LabelSink, OverlaySink])
@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (errno.EACCES, OutputError),
        (errno.EILSEQ, OutputError),
        (errno.EINVAL, OutputError),
        (errno.ENOSPC, SinkError),
        (errno.EDQUOT, SinkError),
        (errno.EROFS, SinkError),
    ],
    ids=lambda value: errno.errorcode.get(value) if isinstance(value, int) else value.__name__,
)
def test_one_output_or_all(small, tmp_path, monkeypatch, sink, code, expected):
    """A full disk ends a run; an error of one file does not."""

    def replace(source, target):
        raise OSError(code, os.strerror(code), target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(expected, match=rf"a\.jpg is not done: .*a_.*png could not be written \({os.strerror(code)}\)"):
        sink(tmp_path).write(small)
    assert os.listdir(tmp_path) == []


def test_an_output_with_a_name_that_is_taken_or_too_long(small, tmp_path):
    (tmp_path / "a_labels.png" / "x").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"a_labels\.png could not be written \(Is a directory"):
        LabelSink(tmp_path).write(small)
    long = Prediction(Frame("o" * 250, small.frame.image), small.labels, VOC)
    with pytest.raises(OutputError, match="File name too long"):
        LabelSink(tmp_path).write(long)


def test_a_folder_that_cannot_be_written_to(small, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(SinkError, match=r"a\.jpg is not done: the folder .*file could not be created \(Not a dir"):
        LabelSink(tmp_path / "file").write(small)

    def mkdir(*arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", mkdir)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(SinkError, match="Permission denied"):
        OverlaySink(tmp_path / "closed").write(small)


def test_an_overlay_that_is_too_long_for_a_jpeg(tmp_path):
    wide = Prediction(Frame("a", np.zeros((1, 65501, 3), np.uint8)), np.zeros((1, 65501), np.uint8), VOC)
    with pytest.raises(OutputError, match=r"65501x1 pixels are too many for a JPEG; write a PNG"):
        OverlaySink(tmp_path, kind="jpg").write(wide)
    assert OverlaySink(tmp_path).write(wide).exists()
