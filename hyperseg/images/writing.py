"""Writing of images: atomically, with a mark by which the project knows its own outputs."""

import os
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from hyperseg._files import atomic_write, printable

# Written into every output: the text "Software" of a PNG, the comment of a JPEG.
MARK = "hyperseg predict"


def marked(note: str) -> str:
    """Return the mark with a note after it."""
    return f"{MARK} {note}".strip()


def save_image(image: Image.Image, path: str | os.PathLike[str], note: str = "") -> Path:
    """Write an image atomically: JPEG for .jpg and .jpeg, PNG for .png. Return the path.

    note: text in the metadata, after the mark.

    Raises:
        OSError: the file cannot be written.
        ValueError: the suffix is another, or a side is too long for a JPEG, which has at most 65500 pixels.
    """
    path, form = Path(path), _FORMATS.get(Path(path).suffix.lower())
    if form is None:
        raise ValueError(f"{printable(path)} does not end in .png, .jpg or .jpeg; give such a name")
    if form == "JPEG" and max(image.size) > 65500:
        raise ValueError(f"{image.width}x{image.height} pixels are too many for a JPEG; write a PNG")
    comment = marked(note)
    options: dict[str, Any] = {"quality": 95, "subsampling": 0, "comment": comment}
    if form == "PNG":
        mark = PngImagePlugin.PngInfo()
        mark.add_text("Software", comment)
        options = {"compress_level": 6, "pnginfo": mark}
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        image.save(file, format=form, **options)
    return path


_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
