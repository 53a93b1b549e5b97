"""The font of texts in pictures: Pillow's own, or one of the system for letters that Pillow's does not have."""

import functools

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# Fonts with many letters that Linux distributions, macOS and Windows have.
_OF_SYSTEMS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "LiberationSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "Arial Unicode.ttf",
    "arial.ttf",
    "msgothic.ttc",
)
_NO_LETTER = "\uffff"  # shown as a font shows what it does not have


def font_for(text: str, size: int) -> Font:
    """Return a font of this size: of those that are there, the one that lacks the fewest letters of a text."""
    fonts = [_default(size)]
    if not text.isascii():
        fonts += [font for name in _OF_SYSTEMS if (font := _of_system(name, size)) is not None]
    letters = [letter for letter in dict.fromkeys(text) if not letter.isascii()]
    return min(fonts, key=lambda font: sum(_lacks(font, letter) for letter in letters))


def _lacks(font: Font, letter: str) -> bool:
    return bytes(font.getmask(letter)) == bytes(font.getmask(_NO_LETTER))


@functools.lru_cache(maxsize=8)
def _default(size: int) -> Font:
    return ImageFont.load_default(size)


@functools.lru_cache(maxsize=64)
def _of_system(name: str, size: int) -> Font | None:
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None
