"""The legend under an overlay: a colour swatch, the name and the share of each class."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from hyperseg.data.fonts import font_for
from hyperseg.data.labels import Color, LabelSet
from hyperseg.data.shares import ClassShare

_PAPER, _INK, _OUTLINE = (255, 255, 255), (32, 32, 32), (150, 150, 150)


def legend_strip(
    shares: Sequence[ClassShare],
    table: LabelSet,
    width: int,
    scale: int,
    percentages: bool = True,
    height: int | None = None,
) -> np.ndarray:
    """Return the legend as a strip (uint8 [h, w, 3]) at least `width` wide, with the classes in columns.

    scale: the smaller side of the image, in pixels; the text grows with it.
    percentages: also write the share of each class.
    height: of the strip at most, but for two lines: the last classes become one entry, "5 more". None: no limit.
    """
    font_size = min(max(round(scale / 28), 13), 48)
    margin, line = round(font_size * 0.6), round(font_size * 1.5)
    entries = [_entry(share, table, percentages) for share in shares]
    font = font_for("".join(entry.name for entry in entries), font_size)
    grid = _Grid(entries, font, font_size, margin, width)
    most = len(entries) if height is None else max((height - 2 * margin) // line, 2)
    for kept in range(len(entries) - 1, 0, -1):
        if grid.rows <= most:
            break
        rest = sum(share.share for share in shares[kept:])
        more = _Entry(None, f"{len(entries) - kept} more", percent(rest) if percentages else "")
        grid = _Grid([*entries[:kept], more], font, font_size, margin, width)
    strip = Image.new("RGB", (max(width, grid.cell + 2 * margin), grid.rows * line + 2 * margin), _PAPER)
    draw = ImageDraw.Draw(strip)
    for index, entry in enumerate(grid.entries):
        column, row = divmod(index, grid.rows)
        left, middle = margin + column * (grid.cell + 3 * margin), margin + row * line + line // 2
        top = middle - font_size // 2
        if entry.color is not None:
            swatch = (left, top, left + font_size, top + font_size)
            draw.rectangle(swatch, fill=entry.color, outline=_OUTLINE)
        draw.text((left + font_size + margin, middle), entry.name, fill=_INK, font=font, anchor="lm")
        draw.text((left + grid.cell, middle), entry.text, fill=_INK, font=font, anchor="rm")
    return np.asarray(strip)


class _Entry(NamedTuple):
    color: Color | None  # of the swatch
    name: str
    text: str


def _entry(share: ClassShare, table: LabelSet, percentages: bool) -> _Entry:
    color = _PAPER if share.index == table.background else table.colors[share.index]  # as in the overlay
    return _Entry(color, share.name, percent(share.share) if percentages else "")


class _Grid:
    """Entries in columns of one width: swatch, name, share."""

    def __init__(self, entries: Sequence[_Entry], font: Any, swatch: int, gap: int, width: int) -> None:
        self.entries = entries
        names = max((round(font.getlength(entry.name)) for entry in entries), default=0)
        texts = max((round(font.getlength(entry.text)) for entry in entries), default=0)
        self.cell = swatch + gap + names + gap + texts
        columns = max(1, min(len(entries), (width + gap) // (self.cell + 3 * gap)))
        self.rows = -(-len(entries) // columns)


def percent(share: float) -> str:
    """Format a share: 0.3329 -> "33.3%". A class that is present is never "0.0%"; one of several is never "100.0%"."""
    if 0 < share < 0.001:
        return "<0.1%"
    if 0.999 < share < 1:
        return ">99.9%"
    return f"{share:.1%}"
