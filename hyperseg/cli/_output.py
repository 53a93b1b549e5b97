"""Output of verbs: lines next to a progress bar, and predictions as JSON records and as tables."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from hyperseg.predict import Prediction


def write_line(text: str, stream: TextIO) -> None:
    """Print without breaking the line of a progress bar."""
    from tqdm import tqdm

    tqdm.write(text, file=stream)


def record(prediction: "Prediction", files: dict[str, Path], size: tuple[int, int] | None) -> dict[str, Any]:
    """Return a prediction for JSON, with its output files by kind and the size of the network (None: the image's)."""
    height, width = prediction.labels.shape
    return {
        "image": str(prediction.frame.path or prediction.frame.name),
        "height": height,
        "width": width,
        "network_size": list(size or (height, width)),
        **{kind: str(path) for kind, path in files.items()},
        "classes": [vars(share) for share in prediction.shares],
    }


def table(record: dict[str, Any]) -> str:
    """Return a record as text: the image and its label file, then one line per class with its share."""
    from hyperseg.predict.legend import percent

    lines = [f"{record['image']} ({record['height']}x{record['width']}) -> {record['labels']}"]
    names = max((len(share["name"]) for share in record["classes"]), default=0)
    lines += [f"  {share['name']:<{names}}  {percent(share['share']):>7}" for share in record["classes"]]
    return "\n".join(lines)
