"""The resize policy, the choice of the label table, and class shares."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hyperseg.data import CAMVID, CITYSCAPES, VOC, colorize
from hyperseg.predict import Segmenter, class_shares, label_set_of, parse_size, segment


@pytest.fixture
def painted():
    """A picture in CamVid's colours, of odd size, and its labels."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 12, (7, 11), dtype=np.uint8).repeat(9, axis=0).repeat(9, axis=1)[:61, :97]
    return colorize(labels, CAMVID), labels


def test_native_size(network, engine_of, painted):
    picture, labels = painted
    for found in (segment(network, picture), segment(engine_of(network, labels.shape), picture)):
        assert found.dtype == np.uint8
        assert np.array_equal(found, labels)


@pytest.mark.parametrize("size", [(32, 48), (128, 160), (61, 97)])
def test_resized(network, engine_of, painted, size):
    """The network sees the picture resized with antialiasing, and logits, not labels, are brought back."""
    picture, labels = painted
    seen = []
    engine = engine_of(network, size)
    engine.logits = lambda frames, plain=engine.logits: seen.append(frames) or plain(frames)
    found = segment(engine, picture, size)
    assert np.array_equal(found, segment(network, picture, size))

    expected = F.interpolate(
        torch.tensor(picture).permute(2, 0, 1)[None].float(), size=size, mode="bilinear", antialias=True
    )
    assert (seen[0].permute(0, 3, 1, 2).float() - expected).abs().max() <= 1, "both round, Pillow twice"
    logits = F.interpolate(engine.logits(seen[0]), size=labels.shape, mode="bilinear", align_corners=False)
    assert np.array_equal(found, logits[0].argmax(0).numpy())
    if size != (32, 48):
        assert (found == labels).mean() > 0.9


def test_real_photo_keeps_its_size(network, photos):
    for name in ("voc", "rocket"):
        assert segment(network, photos[name], (33, 57)).shape == photos[name].shape[:2]


def test_read_only_and_strided_images(network, painted):
    picture, labels = painted
    picture.setflags(write=False)
    assert np.array_equal(segment(network, picture[::-1, ::-1]), labels[::-1, ::-1])


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 4), (0, 4, 3)])
def test_what_is_no_image(network, shape):
    with pytest.raises(ValueError, match=r"an image is uint8 \[H, W, 3\] RGB; got uint8"):
        segment(network, np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match="got float64"):
        segment(network, np.zeros((4, 4, 3)))


def test_a_model_in_train_mode_is_refused(network, painted):
    with pytest.raises(ValueError, match=r"train mode.*model\.eval\(\)"):
        segment(network.train(), painted[0])


def test_segmenter_builds_an_engine_a_size_and_forgets_the_oldest(stand_in, network):
    segmenter = Segmenter(network.train(), keep=2)
    assert not network.training
    assert segmenter.label_set is CAMVID
    for side in (8, 9, 8, 10, 8, 9):
        assert segmenter(np.zeros((side, 16, 3), np.uint8)).shape == (side, 16)
    assert stand_in == [(8, 16), (9, 16), (10, 16), (9, 16)]


def test_segmenter_with_one_size_builds_one_engine(stand_in, network, photos):
    segmenter = Segmenter(network, size=(48, 64))
    for name, photo in photos.items():
        assert segmenter(photo).shape == photo.shape[:2], name
    assert stand_in == [(48, 64)]


def test_parse_size():
    assert parse_size("native", (5, 6)) is None
    assert parse_size("model", (5, 6)) == (5, 6)
    assert parse_size("512x1024", (5, 6)) == (512, 1024)
    for text in ("512", "0x5", "-1x5", "axb", "512x1024x3", "99999x5", ""):
        with pytest.raises(ValueError, match="give native, model, or HEIGHTxWIDTH such as 512x1024"):
            parse_size(text, (5, 6))


def test_label_set_of():
    def config(dataset, num_classes, class_names=None):
        return SimpleNamespace(dataset=dataset, num_classes=num_classes, class_names=class_names)

    assert label_set_of(config("cityscapes", 19)) is CITYSCAPES
    assert label_set_of(config("camvid", 12, CAMVID.classes)) is CAMVID
    renamed = label_set_of(config("voc", 21, tuple("abcdefghijklmnopqrstu")))
    assert renamed.classes[20] == "u"
    assert renamed.colors == VOC.colors
    assert len(label_set_of(config("cityscapes", 3))) == 3
    assert label_set_of(config("mine", 2, ["cat", "dog"])).classes == ("cat", "dog")


def test_class_shares(voc_labels):
    shares = class_shares(voc_labels, VOC)
    assert [(share.name, share.pixels) for share in shares] == [
        ("background", 62317),
        ("person", 62316),
        ("dining table", 56734),
        ("chair", 3508),
        ("bottle", 2625),
    ]
    assert [share.index for share in shares] == [0, 15, 11, 9, 5]
    assert sum(share.share for share in shares) == pytest.approx(1)
    assert shares[0].share == 62317 / (375 * 500)


def test_class_shares_leave_ignored_pixels_out():
    labels = np.array([[3, 3, 255, 255], [1, 1, 255, 3]], np.uint8)
    assert [(share.index, share.share) for share in class_shares(labels, CAMVID)] == [(3, 0.6), (1, 0.4)]
    assert class_shares(np.full((2, 2), 255, np.uint8), CAMVID) == []
    with pytest.raises(ValueError, match="index 12, but camvid has classes 0 to 11"):
        class_shares(np.array([[12]], np.uint8), CAMVID)
