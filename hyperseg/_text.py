"""Text for the whole project: counts with their nouns, errors as one line, sizes."""

import re

from hyperseg._files import printable


def counted(number: int, noun: str) -> str:
    """Return a count with its noun: (1, "image") -> "1 image", (1200, "image") -> "1,200 images", "2 classes"."""
    ending = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}{ending}"


def brief(error: Exception) -> str:
    """Return an error's message as one line, or the name of its type if it has none.

    Of an error of the operating system that is the reason only: messages name the file themselves.
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return printable(" ".join(str(error).split())) or type(error).__name__


def parse_sides(text: str) -> tuple[int, int] | None:
    """Parse HEIGHTxWIDTH, such as "512x1024"; None if the text is anything else or a side is 0."""
    match = re.fullmatch(r"(\d+)x(\d+)", text.strip().lower())
    if match is None or not all(int(side) for side in match.groups()):
        return None
    return int(match[1]), int(match[2])
