"""Text for the whole project: counts with their nouns, errors as one line."""

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
