"""The head of a report: what was scored, which images are missing, and the main numbers with their protocol."""

from collections.abc import Mapping
from typing import Any

from hyperseg._text import counted
from hyperseg.evaluation.report import charts
from hyperseg.evaluation.report.markup import ABSENT, moment, name, percent, percent_unit, text


def head(document: Mapping[str, Any]) -> str:
    """Return the contents of the page's header: data set, network, date, problems, and the numbers."""
    data, settings = document["data"], document["settings"]
    scored = len(document["images"])
    facts = {
        "Images": f"{scored:,}" + (f" of {data['images']:,}" if scored != data["images"] else ""),
        "Predictions" if settings.get("predictions") else "Network": _subject(settings),
        "Scored": moment(document["created"]),
        "With": f"hyperseg {text(document['hyperseg'])}",
    }
    listed = "".join(f"<div><dt>{key}</dt><dd>{value}</dd></div>" for key, value in facts.items())
    return (
        f'<p class="over">Evaluation of semantic segmentation</p><h1>{name(data["name"])} '
        f'<span class="quiet">{name(data["split"])}</span></h1><p class="form">{text(data["form"])}</p>'
        f'<dl class="facts">{listed}</dl>{_problems(document)}{_numbers(document)}'
    )


def _subject(settings: Mapping[str, Any]) -> str:
    """Return what was scored: the folder of predictions, or the network and its weights."""
    if folder := settings.get("predictions"):
        return name(folder)
    parts = [name(settings[key]) for key in ("model", "weights") if settings.get(key)]
    if settings.get("random_weights"):
        parts.append("random weights, so the scores mean nothing")
    return ", ".join(parts) or ABSENT


def _problems(document: Mapping[str, Any]) -> str:
    """Return a box that says which images are not part of the scores; empty if all are."""
    errors, skipped = document.get("errors") or [], document.get("skipped") or []
    if not errors and not skipped:
        return ""
    counts = [counted(len(errors), "error")] * bool(errors) + [f"{len(skipped):,} left out"] * bool(skipped)
    lists = "".join(
        f"<h2>{title}</h2><ul>{''.join(f'<li>{text(message)}</li>' for message in messages)}</ul>"
        for title, messages in (("Errors", errors), ("Left out", skipped))
        if messages
    )
    opened = " open" if len(errors) + len(skipped) <= 5 else ""
    return (
        f'<details class="problems"{opened}><summary>{", ".join(counts)}. The scores are those of '
        f"{len(document['images']):,} of {counted(document['data']['images'], 'image')}.</summary>{lists}</details>"
    )


def _numbers(document: Mapping[str, Any]) -> str:
    standard, official = charts.protocol(document, "standard"), charts.protocol(document, "official")
    k = len(document["classes"])
    scored = sum(value is not None for value in standard.get("per_class", []))
    cards = [
        _card(
            "mIoU",
            "standard",
            standard.get("miou"),
            f"Mean over the {scored} of {counted(k, 'class')} that occur in labels or predictions. A class that does "
            "not occur is left out, as in cityscapesscripts, mmsegmentation and torchmetrics.",
        ),
        _card(
            "mIoU",
            "official",
            official.get("miou"),
            f"Mean over all {counted(k, 'class')}, as in the test script of the official HyperSeg code. A class that "
            "does not occur counts as 0.",
        ),
    ]
    if boundary := document.get("boundary_iou"):
        distances = ", ".join(f"{pixels} px at {size}" for size, pixels in list(boundary["distances"].items())[:3])
        more = ", ..." if len(boundary["distances"]) > 3 else ""
        cards.append(
            _card(
                "Boundary IoU",
                f"standard, ratio {text(boundary['ratio'])}",
                boundary["miou"],
                f"IoU of pixels near the boundaries of classes: within {text(boundary['ratio'])} of the image's "
                f"diagonal{f' ({text(distances)}{more})' if distances else ''}.",
            )
        )
    cards.append(
        _card(
            "Pixel accuracy",
            "either protocol",
            document["pixel_accuracy"],
            "Share of labelled pixels whose class is right. Mean of the classes' accuracies: "
            f"{percent_unit(standard.get('class_accuracy'))} standard, "
            f"{percent_unit(official.get('class_accuracy'))} official.",
        )
    )
    return f'<div class="cards">{"".join(cards)}</div>'


def _card(title: str, which: str, value: float | None, note: str) -> str:
    number = (
        '<strong class="none">no labelled pixel</strong>'
        if value is None
        else (f"<strong>{percent(value, 2)}<small>&nbsp;%</small></strong>")
    )
    return f'<div class="card"><h2>{title} <span class="tag">{which}</span></h2>{number}<p>{note}</p></div>'
