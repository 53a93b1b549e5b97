"""Text for the whole project: counts with their nouns."""


def counted(number: int, noun: str) -> str:
    """Return a count with its noun: (1, "image") -> "1 image", (1200, "image") -> "1,200 images", "2 classes"."""
    ending = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}{ending}"
