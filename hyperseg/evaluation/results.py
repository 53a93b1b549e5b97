"""The result of an evaluation: scores with their protocols and settings, as a JSON document and as a text table."""

import datetime
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import hyperseg
from hyperseg._files import atomic_write, printable
from hyperseg._text import counted
from hyperseg.evaluation.protocols import PROTOCOLS


@dataclass(frozen=True)
class Evaluation:
    """Everything about an evaluation; :meth:`document` has the same names.

    data: "name", "split", "form", "root", "images" (their number) and "manifest_hash" of the data set.
    classes: "name" and "color" of each class.
    settings: how the predictions were made, one value per key.
    confusion: K x K counts; rows are labels, columns predictions.
    other_predictions: labelled pixels of each class whose prediction is no class; they count as wrong.
    protocols: scores by protocol, see :meth:`hyperseg.evaluation.protocols.Scores.document`.
    boundary_iou: "miou", "per_class", "ratio" and "distances" (in pixels, by image size); None if it was not computed.
    images: "name", "miou" (protocol standard on this image alone), "pixel_accuracy" and "labelled_pixels" of each
        image, in the order of the data set.
    errors: a message for each image that could not be scored.
    skipped: messages about what was left out, such as unused files.
    """

    data: dict[str, Any]
    classes: list[dict[str, Any]]
    ignore_index: int
    settings: dict[str, Any]
    confusion: list[list[int]]
    other_predictions: list[int]
    protocols: dict[str, dict[str, Any]]
    boundary_iou: dict[str, Any] | None
    images: list[dict[str, Any]]
    errors: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    created: str = field(default_factory=lambda: datetime.datetime.now().astimezone().isoformat(timespec="seconds"))
    version: str = hyperseg.__version__

    @property
    def pixel_accuracy(self) -> float:
        """Share of the labelled pixels whose prediction is right."""
        return self.protocols["standard"]["pixel_accuracy"]

    def document(self) -> dict[str, Any]:
        """Return the evaluation for JSON: null, never NaN, for what does not count."""
        return {
            "hyperseg": self.version,
            "created": self.created,
            "data": self.data,
            "classes": self.classes,
            "ignore_index": self.ignore_index,
            "settings": self.settings,
            "confusion": self.confusion,
            "other_predictions": self.other_predictions,
            "protocols": self.protocols,
            "pixel_accuracy": self.pixel_accuracy,
            "boundary_iou": self.boundary_iou,
            "images": self.images,
            "errors": self.errors,
            "skipped": self.skipped,
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "Evaluation":
        """Return the evaluation of a document, also after a round trip through JSON.

        Raises:
            ValueError: fields are missing.
        """
        names = {"version": "hyperseg"}
        fields = list(cls.__dataclass_fields__)
        missing = [names.get(name, name) for name in fields if names.get(name, name) not in document]
        if missing:
            raise ValueError(
                f"this is no evaluation: {', '.join(missing)} missing; give what hyperseg eval --json wrote"
            )
        return cls(**{name: document[names.get(name, name)] for name in fields})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the document as JSON, atomically. Raises OSError."""
        text = json.dumps(self.document(), indent=1, allow_nan=False)
        with atomic_write(path) as temporary:
            Path(temporary).write_text(text + "\n", encoding="utf-8")


def scored(confusion: np.ndarray, other: np.ndarray) -> dict[str, dict[str, Any]]:
    """Return the scores of all protocols. Raises NoLabelledPixelError."""
    return {name: protocol(confusion, other).document() for name, protocol in PROTOCOLS.items()}


def text_table(evaluation: Evaluation) -> str:
    """Return the scores in percent as text: a line per class, then means, each column with its protocol."""
    official, standard = evaluation.protocols["official"], evaluation.protocols["standard"]
    boundary = evaluation.boundary_iou
    headings = ["class", "IoU standard", "IoU official", "accuracy"]
    columns: list[Sequence[float | None]] = [
        [*standard["per_class"], standard["miou"]],
        [*official["per_class"], official["miou"]],
        [*standard["accuracy_per_class"], standard["class_accuracy"]],
    ]
    if boundary is not None:
        headings.append("boundary IoU")
        columns.append([*boundary["per_class"], boundary["miou"]])
    names = [each["name"] for each in evaluation.classes] + ["mean"]
    rows = [headings] + [[name, *map(percent, values)] for name, *values in zip(names, *columns, strict=True)]
    widths = [max(len(row[index]) for row in rows) for index in range(len(headings))]
    lines = [_aligned(row, widths) for row in rows]
    rule = "-" * len(lines[0])
    lines[1:1], lines[-1:] = [rule], [rule, lines[-1]]
    return "\n".join([*_headings(evaluation), "", *lines, "", *_notes(evaluation)])


def _extremes(evaluation: Evaluation, most: int = 3) -> list[str]:
    """Return lines that name the worst and best images; none for a few images."""
    ranked = sorted((image for image in evaluation.images if image["miou"] is not None), key=lambda each: each["miou"])
    if len(ranked) < 2 * most:
        return []
    groups = {"worst": ranked[:most], "best": ranked[::-1][:most]}
    return [
        f"{group} images by their own standard mIoU: "
        + ", ".join(f"{printable(image['name'])} {percent(image['miou'])}" for image in images)
        for group, images in groups.items()
    ]


def percent(value: float | None) -> str:
    """Format a score: 0.51879 -> "51.88"; None -> "-"."""
    return "-" if value is None else f"{100 * value:.2f}"


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(
        [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
    )


def _headings(evaluation: Evaluation) -> list[str]:
    data = evaluation.data
    settings = [
        f"{key} {_value(key, value)}" for key, value in evaluation.settings.items() if value not in (None, False)
    ]
    lines = [
        f"{data['name']} {data['split']}: {counted(data['images'], 'image')}; {data['form']}",
        f"manifest {(data['manifest_hash'] or 'none: a file is missing')[:16]}; {'; '.join(settings)}",
    ]
    return [printable(line) for line in lines]


def _value(key: str, value: Any) -> str:
    if key == "weights_hash":
        return str(value)[:16]
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else "yes" if value is True else str(value)


def _notes(evaluation: Evaluation) -> list[str]:
    official, standard = evaluation.protocols["official"], evaluation.protocols["standard"]
    count = sum(value is not None for value in standard["per_class"])
    total, scored_images = evaluation.data["images"], len(evaluation.images)
    pixels = sum(map(sum, evaluation.confusion)) + sum(evaluation.other_predictions)
    notes = [
        f"mIoU {percent(standard['miou'])} standard: mean over the {count} of {len(evaluation.classes)} classes that "
        "are labelled or predicted",
        f"mIoU {percent(official['miou'])} official: mean over all {len(evaluation.classes)} classes, absent ones as 0",
        f"pixel accuracy {percent(evaluation.pixel_accuracy)}, {counted(pixels, 'labelled pixel')}",
    ]
    if evaluation.boundary_iou is not None:
        distances = sorted(set(evaluation.boundary_iou["distances"].values()))
        low = f"{distances[0]} to " if len(distances) > 1 else ""
        width = f"{low}{counted(distances[-1], 'pixel')}"
        notes.append(f"boundary IoU within {evaluation.boundary_iou['ratio']:g} of the diagonal ({width})")
    notes += _extremes(evaluation)
    if scored_images != total:
        notes.append(f"ONLY {scored_images} of {total} images are scored")
    return notes
