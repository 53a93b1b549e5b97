"""The pictures of a report: input, prediction, truth and errors of some images, as data URIs within a size budget."""

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from hyperseg._text import counted
from hyperseg.data.drawing import label_image
from hyperseg.data.labels import IGNORE_COLOR, UNUSED_COLOR, Color, LabelSet
from hyperseg.evaluation.report.markup import name, percent_unit, swatch, text
from hyperseg.images.arrays import check_image, check_labels

GROUPS = {"worst": "The worst images", "best": "The best images", "random": "Images drawn at random"}
KINDS = ("input", "prediction", "truth", "errors")
SIDES = (1024, 768, 640, 512, 384, 256, 160)  # longest side of a picture; the first that fits the budget is taken
_SMALL = 256  # pictures up to this side are enlarged without mixing classes
RIGHT, WRONG, IGNORED = (244, 244, 244), (196, 12, 60), (168, 168, 168)  # lightness alone tells them apart


@dataclass(frozen=True)
class GalleryImage:
    """An image of the gallery.

    image: uint8 [H, W, 3] RGB.
    labels, predictions: uint8 [H, W].
    miou: of this image by itself, None if it has no labelled pixel.
    group: "best", "worst" or "random".

    Raises ValueError if the sizes differ, an array is of another form, or the group is another.
    """

    name: str
    image: np.ndarray
    labels: np.ndarray
    predictions: np.ndarray
    miou: float | None
    group: str

    def __post_init__(self) -> None:
        check_image(self.image)
        check_labels(self.labels)
        check_labels(self.predictions)
        sizes = {self.image.shape[:2], self.labels.shape, self.predictions.shape}
        if len(sizes) > 1:
            shown = ", ".join(f"{height}x{width}" for height, width in sorted(sizes))
            raise ValueError(f"the image, labels and predictions of {self.name} must have one size; got {shown}")
        if self.group not in GROUPS:
            raise ValueError(f"there is no group {self.group!r} of gallery images; take one of {', '.join(GROUPS)}")

    def shrunk(self, side: int = SIDES[0]) -> "GalleryImage":
        """Return the image with at most `side` pixels on the longer side: what a report shows, to keep in memory."""
        height, width = self.labels.shape
        if max(height, width) <= side:
            return self
        scale = side / max(height, width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        image = np.asarray(Image.fromarray(self.image).resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0))
        labels, predictions = (
            np.asarray(Image.fromarray(array).resize(size, Image.Resampling.NEAREST))
            for array in (self.labels, self.predictions)
        )
        return GalleryImage(self.name, image, labels, predictions, self.miou, self.group)


def gallery(images: Sequence[GalleryImage], table: LabelSet, budget: int) -> str:
    """Return the gallery as HTML of at most about `budget` bytes.

    Pictures are made smaller until all of them fit. If they do not fit at the smallest size, the last are left out, and
    the page says so.
    """
    shown = [image for group in GROUPS for image in images if image.group == group]
    if not shown:
        return "<p>This report has no pictures.</p>"
    figures = _figures(shown, table, budget)
    parts = [_legend(shown[: len(figures)], table)]
    for group, title in GROUPS.items():
        found = [figure for image, figure in zip(shown, figures, strict=False) if image.group == group]
        if found:
            parts.append(f"<h3>{title}</h3>{''.join(found)}")
    if len(figures) < len(shown):
        parts.append(f"<p>{counted(len(shown) - len(figures), 'image')} left out to keep this page small.</p>")
    return "".join(parts)


def _figures(images: Sequence[GalleryImage], table: LabelSet, budget: int) -> list[str]:
    figures: list[str] = []
    for side in SIDES:
        figures, size = [], 0
        for image in images:
            figure = _figure(image.shrunk(side), table)
            size += len(figure)
            if size > budget:
                break
            figures.append(figure)
        if len(figures) == len(images):
            break
    return figures


def _figure(image: GalleryImage, table: LabelSet) -> str:
    height, width = image.labels.shape
    small = " small" if max(height, width) <= _SMALL else ""
    pictures = "".join(
        f'<div><button type="button" class="zoom{small}"><img src="{uri}" alt="{kind} of {text(image.name)}" '
        f'width="{width}" height="{height}"></button><span>{kind}</span></div>'
        for kind, uri in zip(KINDS, _uris(image, table), strict=True)
    )
    score = "no labelled pixel" if image.miou is None else f"mIoU {percent_unit(image.miou)}"
    caption = f'<figcaption>{name(image.name)} <span class="quiet">{score}</span></figcaption>'
    return f'<figure class="shot">{caption}<div class="four">{pictures}</div></figure>'


def _uris(image: GalleryImage, table: LabelSet) -> Iterator[str]:
    yield _uri(Image.fromarray(image.image), "JPEG", quality=82, optimize=True)
    for labels in (image.predictions, image.labels):
        yield _uri(label_image(labels, table), "PNG", optimize=True)
    errors = Image.fromarray(error_map(image.labels, image.predictions, table.ignore_index))
    errors.putpalette([*RIGHT, *WRONG, *IGNORED])
    yield _uri(errors, "PNG", optimize=True)


def error_map(labels: np.ndarray, predictions: np.ndarray, ignore_index: int) -> np.ndarray:
    """Return uint8 [H, W]: 0 where the prediction is right, 1 where it is wrong, 2 where the label is ignored."""
    return np.where(labels == ignore_index, 2, labels != predictions).astype(np.uint8)


def _uri(picture: Image.Image, form: str, **options: Any) -> str:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return f"data:image/{form.lower()};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def _legend(images: Sequence[GalleryImage], table: LabelSet) -> str:
    """Return the classes that the pictures contain, and the meaning of the colours of the error maps."""
    labels: set[int] = set()
    predictions: set[int] = set()
    for image in images:
        labels.update(np.unique(image.labels).tolist())
        predictions.update(np.unique(image.predictions).tolist())
    present, ignored = labels | predictions, table.ignore_index in labels
    keys = [(table.colors[index], name(table.classes[index])) for index in sorted(present) if index < len(table)]
    if table.ignore_index in present:
        keys.append((IGNORE_COLOR, "not labelled, or predicted as no class"))
    if any(index >= len(table) and index != table.ignore_index for index in present):
        keys.append((UNUSED_COLOR, "another value that is no class"))
    errors = [(RIGHT, "right"), (WRONG, "wrong")] + [(IGNORED, "not labelled: not scored")] * ignored
    return (
        f'<h3>Colours</h3><ul class="legend" aria-label="Classes">{_keys(keys)}</ul>'
        f'<ul class="legend" aria-label="Errors">{_keys(errors)}</ul>'
    )


def _keys(keys: Sequence[tuple[Color, str]]) -> str:
    return "".join(f"<li>{swatch(color)}{meaning}</li>" for color, meaning in keys)
