"""Shares of classes."""

import numpy as np
import pytest

from hyperseg.data import CAMVID, VOC
from hyperseg.predict import class_shares


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
