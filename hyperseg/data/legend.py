"""The legend under an overlay: a colour swatch, the name and the share of each class."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from hyperseg.data.fonts import font_for
from hyperseg.data.labels import LabelSet
from hyperseg.data.shares import ClassShare

_PAPER, _INK, _OUTLINE = (255, 255, 255), (32, 32, 32), (150, 150, 150)


def legend_strip(
    shares: Sequence[ClassShare], table: LabelSet, width: int, scale: int, percentages: bool = True
) -> np.ndarray:
    """Return the legend as a strip (uint8 [h, w, 3]) at least `width` wide, with the classes in columns.

    scale: the smaller side of the image, in pixels; the text grows with it.
    percentages: also write the share of each class.
    """
    font_size = min(max(round(scale / 28), 13), 48)
    texts = [(share.name, percent(share.share) if percentages else "") for share in shares]
    font = font_for("".join(name for name, _ in texts), font_size)
    gap = round(font_size * 0.6)
    swatch = font_size
    name_width = max((round(font.getlength(name)) for name, _ in texts), default=0)
    share_width = max((round(font.getlength(text)) for _, text in texts), default=0)
    cell = swatch + gap + name_width + gap + share_width
    margin, between = gap, 3 * gap
    columns = max(1, min(len(texts), (width - 2 * margin + between) // (cell + between)))
    rows = -(-len(texts) // columns)
    line = round(font_size * 1.5)
    strip = Image.new("RGB", (max(width, cell + 2 * margin), rows * line + 2 * margin), _PAPER)
    draw = ImageDraw.Draw(strip)
    for index, (share, (name, text)) in enumerate(zip(shares, texts, strict=True)):
        column, row = divmod(index, rows)
        left, middle = margin + column * (cell + between), margin + row * line + line // 2
        top = middle - swatch // 2
        fill = _PAPER if share.index == table.background else table.colors[share.index]  # as in the overlay
        draw.rectangle((left, top, left + swatch, top + swatch), fill=fill, outline=_OUTLINE)
        draw.text((left + swatch + gap, middle), name, fill=_INK, font=font, anchor="lm")
        draw.text((left + cell, middle), text, fill=_INK, font=font, anchor="rm")
    return np.asarray(strip)


def percent(share: float) -> str:
    """Format a share: 0.3329 -> "33.3%". A class that is present is never "0.0%"; one of several is never "100.0%"."""
    if 0 < share < 0.001:
        return "<0.1%"
    if 0.999 < share < 1:
        return ">99.9%"
    return f"{share:.1%}"
