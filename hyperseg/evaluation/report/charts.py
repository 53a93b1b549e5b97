"""Charts of scores as HTML: tables and boxes that the style sheet draws, so text keeps its size and can be read out."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hyperseg._text import counted
from hyperseg.evaluation.report.markup import (
    ABSENT,
    css_color,
    name,
    percent,
    percent_unit,
    swatch,
    text,
)

Document = Mapping[str, Any]

BINS = 20  # of the histogram, from 0 to 1
CONFUSIONS = 8  # pairs of classes in the list of the largest confusions
DARK = 0.865  # opacity of a cell from which white text has more contrast than black


def protocol(document: Document, which: str) -> Mapping[str, Any]:
    """Return the scores of a protocol; empty if the document does not have it."""
    return document["protocols"].get(which) or {}


def of_class(scores: Mapping[str, Any] | None, key: str, index: int) -> float | None:
    """Return a score of one class, None if it is not in the document."""
    values = (scores or {}).get(key)
    return None if values is None else values[index]


def counts_of(document: Document) -> np.ndarray:
    """Return the confusion matrix with a last column for predictions that are no class: int64 [K, K + 1]."""
    counts = np.array(document["confusion"], np.int64)
    k = len(document["classes"])
    others = np.array(document.get("other_predictions") or [0] * k, np.int64)
    if counts.shape != (k, k) or others.shape != (k,):
        raise ValueError(
            f"the document has {k} classes, but its confusion matrix is {list(counts.shape)} and other_predictions "
            f"{list(others.shape)}; expected [{k}, {k}] and [{k}]"
        )
    return np.concatenate([counts, others[:, None]], axis=1)


def class_table(document: Document) -> str:
    """Return the table of classes: pixel share, a bar per protocol, a mark for the boundary IoU, and the numbers."""
    standard, official = protocol(document, "standard"), protocol(document, "official")
    boundary = document.get("boundary_iou")
    pixels = counts_of(document).sum(axis=1).tolist()
    total = sum(pixels)
    rows = []
    for index, item in enumerate(document["classes"]):
        share = pixels[index] / total if total else None
        values = [
            of_class(standard, "per_class", index),
            of_class(official, "per_class", index),
            of_class(boundary, "per_class", index),
            of_class(standard, "accuracy_per_class", index),
        ]
        head = f'<th scope="row" data-v="{index}">{swatch(item["color"])}{name(item["name"])}</th>'
        labelled = f'<td data-v="{pixels[index]}" data-label="pixels" title="{pixels[index]:,}">{_share(share)}</td>'
        bar = f'<td class="bar" aria-hidden="true">{_bars(values[:3], css_color(item["color"]))}</td>'
        cells = "".join(
            f'<td{_value(value)} data-label="{label}">{percent(value)}</td>'
            for value, (label, _) in zip(values, SCORE_COLUMNS, strict=True)
        )
        rows.append(f"<tr>{head}{labelled}{bar}{cells}</tr>")
    means = [standard.get("miou"), official.get("miou"), (boundary or {}).get("miou"), standard.get("class_accuracy")]
    foot = "".join(
        f'<td data-label="{label}">{percent(value)}</td>'
        for value, (label, _) in zip(means, SCORE_COLUMNS, strict=True)
    )
    heads = "".join(f'<th scope="col">{head}</th>' for _, head in SCORE_COLUMNS)
    return (
        '<table class="classes sortable" aria-label="Scores of each class, in percent"><thead><tr>'
        '<th scope="col">Class</th><th scope="col">Pixels, %</th>'
        '<td class="bar scale" aria-hidden="true"><span>0</span><span>50</span><span>100</span></td>'
        f"{heads}</tr></thead><tbody>{''.join(rows)}</tbody>"
        f'<tfoot><tr><th scope="row">Mean</th><td></td><td class="bar"></td>{foot}</tr></tfoot></table>'
    )


# The label of a number on narrow screens, and the head of its column.
SCORE_COLUMNS = (
    ("standard", "IoU, standard"),
    ("official", "IoU, official"),
    ("boundary", "Boundary IoU"),
    ("accuracy", "Accuracy, standard"),
)


def _value(value: float | None) -> str:
    """Return the attribute by which a cell is sorted; cells without it come last."""
    return "" if value is None else f' data-v="{value:.6g}"'


def _share(share: float | None) -> str:
    if share is None or share == 0:
        return ABSENT
    return "&lt;0.1" if share < 0.001 else percent(share)


def _bars(values: Sequence[float | None], color: str) -> str:
    kinds = ("standard", "official", "boundary")
    marks = (
        f'<i class="{kind}" style="--v:{value:.4f}"></i>'
        for kind, value in zip(kinds, values, strict=True)
        if value is not None
    )
    return f'<div class="track" style="--c:{color}">{"".join(marks)}</div>'


def confusion_table(document: Document) -> str:
    """Return the confusion matrix as a table: each row in shares of its labelled pixels, counts when pointed at."""
    counts = counts_of(document)
    names = [item["name"] for item in document["classes"]]
    predictions = [*names, "no class"]
    swatches = [swatch(item["color"]) for item in document["classes"]]
    heads = "".join(
        f'<th scope="col" title="{text(title)}"><span>{mark}{name(title)}</span></th>'
        for title, mark in zip(predictions, [*swatches, ""], strict=True)
    )
    rows = []
    for index, row in enumerate(counts.tolist()):
        total = sum(row)
        start = f"label {text(_short(names[index]))}, predicted "
        cells = "".join(
            _cell(count, total, start + text(_short(title)), column == index)
            for column, (count, title) in enumerate(zip(row, predictions, strict=True))
        )
        head = f'<th scope="row" title="{text(names[index])}: {counted(total, "labelled pixel")}">'
        absent = "" if total else ' class="absent"'
        rows.append(f"<tr{absent}>{head}{swatches[index]}{name(names[index])}</th>{cells}</tr>")
    size = "large" if len(names) <= 12 else "medium" if len(names) <= 24 else "small"
    return (
        f'<table class="confusion {size}" aria-label="Confusion matrix: percent of the labelled pixels of each row">'
        f'<thead><tr><td class="corner">label ↓ prediction →</td>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _cell(count: int, total: int, what: str, right: bool) -> str:
    if not count:
        return '<td class="right"></td>' if right and not total else "<td></td>"
    share = count / total
    opacity = share**0.5  # small confusions are what one looks for
    classes = " ".join(["right"] * right + ["dark"] * (opacity >= DARK))
    kind = f' class="{classes}"' if classes else ""
    title = f"{what}: {counted(count, 'pixel')}, {_share(share).replace('&lt;', 'less than ')} % of the label"
    return f'<td{kind} style="--a:{opacity:.2f}" title="{title}">{_rounded(share)}</td>'


def _rounded(share: float) -> str:
    """Return whole percents. Only what is all or nothing is shown as 100 or 0."""
    return "·" if share < 0.005 else str(min(round(100 * share), 99 if share < 1 else 100))


def _short(title: str, length: int = 40) -> str:
    return title if len(title) <= length else title[: length - 1] + "…"


class Confusion(NamedTuple):
    """Labelled pixels of one class that are predicted as another (index K: as no class)."""

    label: int
    prediction: int
    pixels: int
    share: float


def largest_confusions(document: Document, most: int = CONFUSIONS) -> list[Confusion]:
    """Return the pairs of classes with the most wrong pixels, largest first."""
    counts = counts_of(document)
    totals = counts.sum(axis=1)
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    found = []
    for flat in np.argsort(-wrong, axis=None, kind="stable")[:most].tolist():
        label, prediction = divmod(flat, wrong.shape[1])
        if pixels := int(wrong[label, prediction]):
            found.append(Confusion(label, prediction, pixels, pixels / int(totals[label])))
    return found


def confusion_list(document: Document) -> str:
    """Return the largest confusions as a list."""
    classes = document["classes"]
    labelled = int(counts_of(document).sum())
    wrong = labelled - sum(row[i] for i, row in enumerate(document["confusion"]))
    items = []
    for found in largest_confusions(document):
        label = classes[found.label]
        shown = f"{swatch(label['color'])}{name(label['name'])} as "
        if found.prediction < len(classes):
            prediction = classes[found.prediction]
            shown += f"{swatch(prediction['color'])}{name(prediction['name'])}"
        else:
            shown += "no class"
        numbers = f"{percent_unit(found.pixels / wrong)} of all wrong pixels, {percent_unit(found.share)} of the label"
        items.append(f'<li>{shown} <span class="quiet">{numbers}</span></li>')
    if not items:
        return "<p>No pixel is wrong.</p>" if labelled else "<p>There is no labelled pixel.</p>"
    return f'<ol class="confusions">{"".join(items)}</ol>'


def histogram(document: Document) -> str:
    """Return the histogram of the images' mIoU, with the median marked."""
    scores = [image["miou"] for image in document["images"] if image["miou"] is not None]
    if not scores:
        return "<p>No image has a labelled pixel, so there are no scores of single images.</p>"
    bins = [0] * BINS
    for score in scores:
        bins[min(int(score * BINS + 1e-9), BINS - 1)] += 1
    most, median = max(bins), statistics.median(scores)
    summary = (
        f"Lowest {percent(min(scores))}, median {percent(median)}, mean {percent(statistics.fmean(scores))}, "
        f"highest {percent(max(scores))}&nbsp;%"
    )
    bars = "".join(
        f'<i style="--h:{count / most:.4f}" title="{100 * i // BINS} to {100 * (i + 1) // BINS} %: '
        f'{counted(count, "image")}"><b>{count or ""}</b></i>'
        for i, count in enumerate(bins)
    )
    ticks = "".join(f"<span>{tick}</span>" for tick in (0, 25, 50, 75, 100))
    left_out = len(document["images"]) - len(scores)
    note = f" {counted(left_out, 'image')} without a labelled pixel left out." if left_out else ""
    return (
        f'<figure class="histogram" role="img" aria-label="Histogram of the mIoU of {counted(len(scores), "image")}. '
        f'{summary}"><div class="bars">{bars}<s style="--v:{median:.4f}">median {percent(median)}</s></div>'
        f'<div class="ticks">{ticks}</div></figure><p>{summary}.{note}</p>'
    )
