"""Labels as pictures: palette images, overlays, and the legend below them."""

import functools
from collections.abc import Sequence

import numpy as np
from PIL import Image

from hyperseg.data.labels import LabelSet, palette
from hyperseg.data.legend import legend_strip
from hyperseg.data.shares import ClassShare
from hyperseg.images.arrays import check_image, check_labels


def label_image(labels: np.ndarray, table: LabelSet) -> Image.Image:
    """Return labels (uint8 [H, W]) as a Pillow image in mode "P" with the palette of `table`. Raises ValueError."""
    check_labels(labels)
    image = Image.fromarray(np.ascontiguousarray(labels))
    image.putpalette(palette(table))  # turns "L" into "P" and keeps the indices
    return image


def overlay(image: np.ndarray, labels: np.ndarray, table: LabelSet, alpha: float = 0.6) -> np.ndarray:
    """Blend an image (uint8 [H, W, 3]) with the colours of its labels (uint8 [H, W]); returns uint8 [H, W, 3].

    alpha: opacity of the colours, 0 (image only) to 1 (colours only). Ignored and background pixels keep the image.
    Raises ValueError if the sizes differ, an array is of another form, or alpha is out of range.
    """
    check_image(image)
    check_labels(labels)
    if image.shape[:2] != labels.shape:
        raise ValueError(f"the image is {image.shape[:2]} but its labels are {labels.shape}; their sizes must match")
    check_alpha(alpha)
    blend = _blend_table(table, alpha)
    index = labels.astype(np.uint16) << 8
    mixed = np.empty_like(image)
    for channel in range(3):
        np.take(blend[channel], index | image[:, :, channel], out=mixed[:, :, channel], mode="clip")
    return mixed


@functools.lru_cache(8)
def _blend_table(table: LabelSet, alpha: float) -> np.ndarray:
    """Return the blended value of each channel, label and value of the image: uint8 [3, 256 * 256].

    To look values up takes a quarter of the time of computing them for each pixel.
    """
    opacity = np.full(256, alpha, np.float32)
    opacity[table.ignore_index] = 0
    if table.background is not None:
        opacity[table.background] = 0
    colors = np.array(palette(table), np.uint8).reshape(256, 3).T[:, :, None]
    values = np.arange(256, dtype=np.uint8) * (1 - opacity[:, None])
    return np.rint(values + colors * opacity[:, None]).astype(np.uint8).reshape(3, -1)


def check_alpha(alpha: float) -> None:
    """Raise ValueError for an opacity that is not from 0 to 1."""
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}; give 0 (image only) to 1 (colours only)")


def with_legend(image: np.ndarray, shares: Sequence[ClassShare], table: LabelSet) -> np.ndarray:
    """Add a strip below an image (uint8 [H, W, 3]) that names the classes: uint8 [H + h, max(W, w), 3].

    It is not higher than the image, unless that is lower than two lines: the last classes become one entry, "5 more".
    """
    strip = legend_strip(shares, table, width=image.shape[1], scale=min(image.shape[:2]), height=image.shape[0])
    width = max(image.shape[1], strip.shape[1])
    canvas = np.full((image.shape[0] + strip.shape[0], width, 3), 255, np.uint8)
    canvas[: image.shape[0], : image.shape[1]] = image
    canvas[image.shape[0] :, : strip.shape[1]] = strip
    return canvas
