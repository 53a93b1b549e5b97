"""A decoded frame of PyAV as upright 8-bit RGB."""

import struct
from typing import Any

import numpy as np

_BT709 = 1  # in the tables of ITU-T H.273, which FFmpeg uses
_UNSPECIFIED = 2
_PQ, _HLG = 16, 18
# Flags of FFmpeg's scaler: bilinear chroma for every pixel, accurate rounding. Its default is off by up to 3 of 255.
EXACT = 0x2 | 0x2000 | 0x40000


def upright_rgb(frame: Any) -> tuple[np.ndarray, bool]:
    """Return a frame as uint8 [H, W, 3], turned as its display matrix says, and whether its sides were exchanged.

    Matrix and range of the colours are those that the video names. Without a name they are BT.709 from 720 rows on,
    else BT.601, as players assume.
    """
    unnamed_hd = frame.colorspace == _UNSPECIFIED and min(frame.width, frame.height) >= 720
    named = {"src_colorspace": _BT709} if unnamed_hd else {}
    image = frame.to_ndarray(format="rgb24", interpolation=EXACT, **named)
    return turned(image, _display_matrix(frame))


def transfer(frame: Any) -> str | None:
    """Return "PQ" or "HLG" for a frame of a high dynamic range, else None."""
    return {_PQ: "PQ", _HLG: "HLG"}.get(frame.color_trc)


def turned(image: np.ndarray, matrix: tuple[int, int, int, int]) -> tuple[np.ndarray, bool]:
    """Apply a display matrix (a, b, c, d): a pixel at (x, y) is shown at (a x + c y, b x + d y).

    Quarter turns and mirrors are applied; other angles, which cameras do not write, are not.
    Returns the image and whether its sides were exchanged.
    """
    a, b, c, d = matrix
    if b == c == 0 and a and d:
        across, down, exchanged = a, d, False
    elif a == d == 0 and b and c:
        image, across, down, exchanged = image.swapaxes(0, 1), c, b, True
    else:
        return image, False
    image = image[:: 1 if down > 0 else -1, :: 1 if across > 0 else -1]
    return np.ascontiguousarray(image), exchanged


def _display_matrix(frame: Any) -> tuple[int, int, int, int]:
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            a, b, _, c, d, *_ = struct.unpack("=9i", bytes(data))
            return a, b, c, d
    return 1, 0, 0, 1
