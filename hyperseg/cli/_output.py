"""Output of verbs: lines for any terminal, next to a progress bar, and predictions as JSON records and as tables."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from hyperseg._files import atomic_write, printable
from hyperseg._text import counted

if TYPE_CHECKING:
    from hyperseg.predict import Prediction


def write_line(text: str, stream: TextIO) -> None:
    """Print without breaking the line of a progress bar, and escape what the encoding of the stream does not have."""
    from tqdm import tqdm

    tqdm.write(encodable(text, stream), file=stream)


def encodable(text: str, stream: TextIO) -> str:
    """Return a text with escapes such as \\xe9 for the characters that the encoding of the stream does not have."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def write_json(document: dict[str, Any], path: str) -> None:
    """Write a document atomically. Raises OSError, and ValueError for NaN and infinities, which JSON does not have."""
    text = json.dumps(document, indent=2, allow_nan=False)
    with atomic_write(path) as temporary:
        temporary.write_text(text + "\n", encoding="ascii")


def record(prediction: "Prediction", files: dict[str, Path], size: tuple[int, int] | None) -> dict[str, Any]:
    """Return a prediction for JSON, with its output files by kind and the size of the network (None: the image's).

    A byte of a file name that is not UTF-8 becomes a lone surrogate, as in Python: "\\udce9" in JSON.
    """
    height, width = prediction.labels.shape
    return {
        "image": os.fspath(prediction.frame.path or prediction.frame.name),
        "height": height,
        "width": width,
        "network_size": list(size or (height, width)),
        **{kind: str(path) for kind, path in files.items()},
        "classes": [vars(share) for share in prediction.shares],
    }


def table(record: dict[str, Any]) -> str:
    """Return a record as text: the image and its output files, then one line per class with its share."""
    image, written = printable(record["image"]), printable(", ".join(_files(record)) or "nowhere")
    first = f"{image} ({record['height']}x{record['width']}) -> {written}"
    return "\n".join([first, *class_lines(record["classes"])])


def _files(record: dict[str, Any]) -> list[str]:
    return [value for key, value in record.items() if key != "image" and isinstance(value, str)]


def class_lines(classes: list[dict[str, Any]]) -> list[str]:
    """Return a line per class with its share."""
    from hyperseg.data.legend import percent

    names = max((len(share["name"]) for share in classes), default=0)
    return [f"  {share['name']:<{names}}  {percent(share['share']):>7}" for share in classes]


def summary(total: int, done: int, failed: int, skipped: int, noun: str = "image", rest: str = "not tried") -> str:
    """Return one line that counts inputs: 8 of 11 images done; 2 failed, 1 skipped. `rest`: what all others are."""
    counts = {"failed": failed, "skipped": skipped, rest: total - done - failed - skipped}
    others = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    return f"{done} of {counted(total, noun)} done" + (f"; {others}" if others else "")
