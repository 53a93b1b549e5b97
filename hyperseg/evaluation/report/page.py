"""The page of a report: head, sections and the document itself, put together and written."""

import json
import os
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from hyperseg._files import atomic_write, printable
from hyperseg._text import counted
from hyperseg.data.labels import LabelSet
from hyperseg.evaluation.report import charts
from hyperseg.evaluation.report.gallery import KINDS, GalleryImage, gallery
from hyperseg.evaluation.report.head import head
from hyperseg.evaluation.report.markup import (
    embedded_json,
    name,
    percent,
    setting,
    text,
)
from hyperseg.evaluation.results import Evaluation

PAGE_BYTES = 9_500_000  # pictures are made smaller until the page is not larger
LEAST_GALLERY_BYTES = 1_000_000  # for pictures, even if the document alone exceeds PAGE_BYTES
LISTED_IMAGES = 1000  # rows in the table of images, those with the lowest scores

_JSON_START = '<script type="application/json" id="document">'
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def write_report(
    evaluation: Evaluation,
    images: Sequence[GalleryImage],
    path: str | os.PathLike[str],
    command: str | None = None,
) -> Path:
    """Write the report of an evaluation as one HTML page, atomically. Return its path.

    The page contains everything that it needs, and the evaluation itself, which :func:`read_report` returns.

    Args:
        evaluation: from :func:`hyperseg.evaluation.evaluate`, or `Evaluation.from_document` of a JSON file.
        images: for the gallery.
        command: the command line that repeats the evaluation.

    Raises:
        ValueError: the evaluation contradicts itself or contains NaN.
        OSError: the file cannot be written.
    """
    page = report_page(evaluation.document(), images, command)
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8", newline="\n")
    return Path(path)


def read_report(path: str | os.PathLike[str]) -> Evaluation:
    """Return the evaluation in a report.

    Raises:
        ValueError: the file is no report of an evaluation.
        OSError: the file cannot be read.
    """
    page = Path(path).read_text(encoding="utf-8", errors="replace")
    _, start, rest = page.partition(_JSON_START)
    if not start:
        raise ValueError(f"{printable(path)} is no report of hyperseg eval: it contains no evaluation")
    return Evaluation.from_document(json.loads(rest.partition("</script>")[0]))


def report_page(document: Mapping[str, Any], images: Sequence[GalleryImage] = (), command: str | None = None) -> str:
    """Return the report as a page of HTML; see :func:`write_report`."""
    table = label_table(document)
    sections = [
        ("classes", "Classes", _classes(document)),
        ("confusion", "Confusion matrix", _confusion(document)),
        ("scores", "Scores of single images", _scores(document)),
        ("gallery", "Gallery", ""),
        ("settings", "Settings", _settings(document, command)),
    ]
    data = embedded_json(document)
    used = len(data) + sum(len(body.encode(errors="replace")) for _, _, body in sections)
    pictures = _gallery(gallery(images, table, max(LEAST_GALLERY_BYTES, PAGE_BYTES - used)))
    links = "".join(f'<a href="#{key}">{title}</a>' for key, title, _ in sections)
    body = "".join(
        f'<section id="{key}" aria-labelledby="{key}-title"><h2 id="{key}-title">{title}</h2>{content or pictures}'
        "</section>\n"
        for key, title, content in sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{text(_title(document))}</title>\n<style>\n{_asset('style.css')}</style></head>\n<body>\n"
        f'<header>{head(document)}<nav aria-label="Sections">{links}</nav></header>\n<main>\n{body}</main>\n'
        f"{_dialog()}{_JSON_START}{data}</script>\n<script>\n{_asset('script.js')}</script>\n</body></html>\n"
    )


def label_table(document: Mapping[str, Any]) -> LabelSet:
    """Return the classes of a document as a label set. Raises ValueError if they cannot be one."""
    classes = document["classes"]
    return LabelSet(
        document["data"]["name"],
        tuple(item["name"] for item in classes),
        tuple(tuple(item["color"]) for item in classes),
        ignore_index=document["ignore_index"],
    )


def _asset(file: str) -> str:
    return resources.files(__package__).joinpath(file).read_text(encoding="utf-8")


def _title(document: Mapping[str, Any]) -> str:
    data, score = document["data"], charts.protocol(document, "standard").get("miou")
    shown = f"mIoU {percent(score)} % (standard)" if score is not None else "no labelled pixel"
    return f"{data['name']} {data['split']}: {shown} - HyperSeg"


def _classes(document: Mapping[str, Any]) -> str:
    absent = [
        item["name"]
        for item, value in zip(document["classes"], charts.protocol(document, "standard")["per_class"], strict=True)
        if value is None
    ]
    note = ""
    if absent:
        shown = ", ".join(map(name, absent[:12])) + (", ..." if len(absent) > 12 else "")
        note = f"<p>{counted(len(absent), 'class')} without a pixel in labels and predictions: {shown}.</p>"
    return (
        '<ul class="legend keys" aria-hidden="true"><li><i class="key standard"></i>IoU, standard</li>'
        '<li><i class="key official"></i>IoU, official</li><li><i class="key boundary"></i>boundary IoU</li></ul>'
        f"{charts.class_table(document)}{note}"
    )


def _confusion(document: Mapping[str, Any]) -> str:
    return (
        "<p>Rows are labels, columns predictions. A cell is the percentage of its row's labelled pixels; its colour "
        "grows with the square root, so that small confusions show. Point at a cell for its count.</p>"
        '<ul class="legend scale" aria-hidden="true"><li><i class="key right"></i>right</li>'
        '<li><i class="key wrong"></i>wrong</li><li class="steps">'
        + "".join(f'<i class="key wrong" style="--a:{share**0.5:.2f}"></i>{100 * share:g}&nbsp;%' for share in SHADES)
        + '</li></ul><p class="readout" id="readout" aria-live="polite">&nbsp;</p>'
        '<div class="pair"><div class="scroll" role="region" aria-labelledby="confusion-title" tabindex="0">'
        f"{charts.confusion_table(document)}</div><div><h3>The largest confusions</h3>{charts.confusion_list(document)}"
        "</div></div>"
    )


SHADES = (0.01, 0.05, 0.2, 0.5, 1.0)  # in the legend of the confusion matrix


def _scores(document: Mapping[str, Any]) -> str:
    images = document["images"]
    if not images:
        return "<p>No image was scored.</p>"
    listed = sorted(images, key=lambda image: (image["miou"] is None, image["miou"]))[:LISTED_IMAGES]
    rows = "".join(
        f'<tr><th scope="row" data-v="{index}">{name(image["name"])}</th>'
        + "".join(
            f'<td{"" if image[key] is None else f""" data-v="{image[key]:.6g}" """.rstrip()}>{shown}</td>'
            for key, shown in (
                ("miou", percent(image["miou"])),
                ("pixel_accuracy", percent(image["pixel_accuracy"])),
                ("labelled_pixels", f"{image['labelled_pixels']:,}"),
            )
        )
        + "</tr>"
        for index, image in enumerate(listed)
    )
    title = counted(len(images), "image")
    if len(listed) < len(images):
        title = f"The {len(listed):,} of {title} that score lowest"
    return (
        "<p>mIoU of each image by itself (standard protocol: over the classes in its labels or its prediction). The "
        "mean of these scores is another number than the mIoU of the data set, which adds up all pixels first.</p>"
        f"{charts.histogram(document)}<details><summary>{title}</summary>"
        '<div class="scroll" role="region" aria-label="Scores of images" tabindex="0">'
        '<table class="images sortable" aria-label="Scores of images"><thead><tr><th scope="col">Image</th>'
        '<th scope="col">mIoU, %</th><th scope="col">Pixel accuracy, %</th><th scope="col">Labelled pixels</th></tr>'
        f"</thead><tbody>{rows}</tbody></table></div></details>"
    )


def _gallery(pictures: str) -> str:
    return f'<p class="hint">Select a picture to enlarge it.</p>{pictures}' if "<img" in pictures else pictures


def _dialog() -> str:
    kinds = "".join(f'<button type="button">{kind}</button>' for kind in KINDS)
    return (
        '<dialog id="zoom" aria-labelledby="zoom-name"><div class="bar"><strong id="zoom-name"></strong>'
        f'<span id="zoom-kinds" role="group" aria-label="Picture">{kinds}</span>'
        '<button type="button" id="zoom-close" aria-label="Close">✕</button></div><img id="zoom-picture" alt="">'
        '<p id="zoom-class">&nbsp;</p><p class="quiet keys">Keys: ← → input, prediction, truth, errors; ↑ ↓ another '
        "image; Esc closes.</p></dialog>\n"
    )


def _settings(document: Mapping[str, Any], command: str | None) -> str:
    data = document["data"]
    boundary = document.get("boundary_iou") or {}
    rows = {
        "data": data["name"],
        "split": data["split"],
        "form": data["form"],
        "root": data["root"],
        "images": data["images"],
        "manifest hash": data["manifest_hash"],
        "classes": len(document["classes"]),
        "ignore index": document["ignore_index"],
        **document["settings"],
        **({"boundary ratio": boundary["ratio"], "boundary distances": boundary["distances"]} if boundary else {}),
        "hyperseg": document["hyperseg"],
        "created": document["created"],
    }
    listed = "".join(
        f'<tr><th scope="row">{text(key)}</th><td>{setting(value)}</td></tr>' for key, value in rows.items()
    )
    repeat = f'<pre tabindex="0"><code>{text(command)}</code></pre>' if command else "<p>The command is not known.</p>"
    return (
        f'<table class="settings" aria-label="Settings of this evaluation"><tbody>{listed}</tbody>'
        f"</table><h3>How to repeat it</h3>{repeat}<p>Everything on this page, in full precision, is in the JSON "
        "document that it contains: the element <code>script#document</code>, in Python "
        "<code>hyperseg.evaluation.report.read_report(path)</code>.</p>"
    )
