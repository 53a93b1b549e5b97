"""The size that a network runs at, as users give it."""

from hyperseg._text import parse_sides

Size = tuple[int, int]

# The encoder reduces an image by 32: of a smaller one nothing is left but its mean colour.
_LEAST, _MOST = 32, 16384


def parse_size(text: str, resolution: Size, native: bool = True) -> Size | None:
    """Parse the size that the network runs at: "native" (None: each image's own), "model" (`resolution`) or "HxW".

    Without ``native`` that word is not offered.

    Raises ValueError for anything else.
    """
    word = text.strip().lower()
    if word == "native":
        return None
    if word == "model":
        return resolution
    sides = parse_sides(text)
    expected = f"give {'native, ' if native else ''}model, or HEIGHTxWIDTH such as 512x1024"
    if sides is None:
        raise ValueError(f"size {text!r} is not understood; {expected}")
    if not _LEAST <= min(sides) <= max(sides) <= _MOST:
        raise ValueError(f"size {text!r} is out of range: each side may have {_LEAST} to {_MOST} pixels; {expected}")
    return sides
