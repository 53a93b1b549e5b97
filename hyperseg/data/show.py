"""Contact sheets: images of a data set, next to each its labels drawn over it, and a legend of the classes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from hyperseg._files import printable
from hyperseg.data.dataset import Dataset
from hyperseg.data.drawing import check_alpha, overlay
from hyperseg.data.errors import DataError
from hyperseg.data.fonts import Font, font_for
from hyperseg.data.labels import LabelSet
from hyperseg.data.legend import legend_strip, percent
from hyperseg.data.shares import ClassShare, label_counts

_PAPER, _INK, _FAINT, _ERROR = (255, 255, 255), (32, 32, 32), (110, 110, 110), (160, 0, 0)
_GAP, _FONT = 12, 15
_CAPTION = 2 * (_FONT + 6)
_STRIPE = 4  # pixels; ignored pixels are hatched
_NAMED = 4  # classes in a caption


@dataclass
class _Tile:
    """A picture with the two lines below it. counts: of its labels, None without labels."""

    picture: np.ndarray
    lines: tuple[str, str]
    counts: np.ndarray | None = None
    wrong: bool = False


def contact_sheet(
    dataset: Dataset,
    indices: Sequence[int],
    columns: int | None = None,
    width: int = 480,
    alpha: float = 0.6,
    on_error: Callable[[str], object] = lambda message: None,
    progress: Callable[[], object] = lambda: None,
) -> Image.Image:
    """Return a contact sheet. Aspect ratios are kept, and ignored pixels are hatched.

    Args:
        indices: of the images.
        columns: pairs of pictures in a row; by default for a sheet somewhat wider than high.
        width: of each picture, in pixels. Higher than wide, it is that high.
        alpha: opacity of the labels' colours.
        on_error: called with the message for an image or label file that cannot be used; its place shows the message.
        progress: called after each image.

    Raises:
        ValueError: there are no images, or a number is out of range.
    """
    if not indices or width < 64 or (columns is not None and columns < 1):
        given = f"{len(indices)} images {width} wide in {columns} columns"
        raise ValueError(f"{given}; give at least 1 image, 64 pixels and 1 column")
    check_alpha(alpha)
    tiles = []
    for index in indices:
        tiles.append(_tile(dataset, index, width, alpha, on_error))
        progress()
    sizes = np.array([tile.picture.shape[:2] for tile in tiles])
    cell_height, cell_width = int(sizes[:, 0].max()) + _CAPTION + _GAP, int(sizes[:, 1].max()) + _GAP
    if columns is None:
        columns = max(1, min(len(tiles), round((1.5 * len(tiles) * cell_height / cell_width) ** 0.5)))
    rows = -(-len(tiles) // columns)
    head = _FONT * 3
    sheet = Image.new("RGB", (columns * cell_width + _GAP, head + rows * cell_height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    count = f"{len(tiles)} of {len(dataset)} images"
    title = f"{dataset.name} {dataset.split}, {count}: {printable(dataset.form)}"
    font = font_for(title, _FONT)
    draw.text((_GAP, head // 2), _shortened(title, font, sheet.width - 2 * _GAP), _INK, font, anchor="lm")
    for number, tile in enumerate(tiles):
        x, y = number % columns * cell_width + _GAP, head + number // columns * cell_height
        height, wide = tile.picture.shape[:2]
        sheet.paste(Image.fromarray(tile.picture), (x, y))
        for line, text in enumerate(tile.lines):
            top = y + height + 4 + line * (_FONT + 4)
            color = _ERROR if tile.wrong else _FAINT if line else _INK
            font = font_for(text, _FONT)
            draw.text((x, top), _shortened(text, font, max(wide, cell_width - _GAP)), color, font)
    counts = [tile.counts for tile in tiles if tile.counts is not None]
    return _with_legend(sheet, sum(counts, np.zeros(256, np.int64)), dataset.label_set) if counts else sheet


def _tile(dataset: Dataset, index: int, width: int, alpha: float, on_error: Callable[[str], object]) -> _Tile:
    """Return the picture of an item; one with the error's message if it cannot be used."""
    item, table = dataset.items[index], dataset.label_set
    name = printable(item.name)
    try:
        if item.label is None:
            image, labels = dataset.image(index), None
        else:
            image, labels = dataset.sample(index)
    except DataError as error:
        on_error(str(error))
        return _Tile(_message_picture(str(error), 2 * width, width // 2), (name, "cannot be used"), wrong=True)
    size = _fitted(image.shape[0], image.shape[1], width)
    filter = Image.Resampling.BOX if size[0] < image.shape[1] else Image.Resampling.BICUBIC
    small = np.asarray(Image.fromarray(image).resize(size, filter))
    about = f"{name}  {image.shape[0]}x{image.shape[1]}"
    if labels is None:
        return _Tile(small, (about, "no labels"))
    marked = _overlay(small, np.asarray(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST)), table, alpha)
    counts = label_counts(labels)
    return _Tile(np.concatenate([small, marked], 1), (about, _shares_line(counts, table)), counts)


def _overlay(image: np.ndarray, labels: np.ndarray, table: LabelSet, alpha: float) -> np.ndarray:
    """Lay labels over an image, with stripes on ignored pixels."""
    picture = overlay(image, labels, table, alpha)
    diagonal = np.add.outer(np.arange(labels.shape[0]), np.arange(labels.shape[1]))
    hatched = (labels == table.ignore_index) & (diagonal // _STRIPE % 2 == 0)
    picture[hatched] = np.where(image[hatched].mean(1, keepdims=True) < 128, 255, 0)
    return picture


def _fitted(height: int, width: int, side: int) -> tuple[int, int]:
    """Return width and height with this longer side and the same aspect ratio."""
    longest = max(height, width)
    return max(round(width * side / longest), 1), max(round(height * side / longest), 1)


def _shares_line(counts: np.ndarray, table: LabelSet) -> str:
    """Return the largest classes with their shares, and the share of ignored pixels."""
    labelled, total = int(counts[: len(table)].sum()), int(counts.sum())
    if not labelled:
        return "no labelled pixel: all are ignored"
    order = [index for index in np.argsort(-counts[: len(table)], kind="stable") if counts[index]]
    parts = [f"{table.classes[index]} {percent(counts[index] / labelled)}" for index in order[:_NAMED]]
    if len(order) > _NAMED:
        parts.append(f"{len(order) - _NAMED} more")
    if ignored := int(counts[table.ignore_index]):
        parts.insert(0, f"ignored {percent(ignored / total)}")
    return ", ".join(parts)


def _message_picture(message: str, width: int, height: int) -> np.ndarray:
    """Return a pale picture with a message, broken into lines."""
    picture = Image.new("RGB", (width, height), (250, 232, 232))
    draw, font = ImageDraw.Draw(picture), font_for(message, _FONT)
    lines = [""]
    for word in message.split():
        if font.getlength(f"{lines[-1]} {word}") > width - 2 * _GAP and lines[-1]:
            lines.append("")
        for letter in f"{' ' if lines[-1] else ''}{word}":  # a path may be wider than the picture
            if font.getlength(lines[-1] + letter) > width - 2 * _GAP:
                lines.append("")
            lines[-1] += letter
    draw.text((_GAP, _GAP), "\n".join(lines), _ERROR, font)
    return np.asarray(picture)


def _shortened(text: str, font: Font, width: int) -> str:
    """Return a text that is not wider; the end is cut."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _with_legend(sheet: Image.Image, counts: np.ndarray, table: LabelSet) -> Image.Image:
    """Add the names and colours of all classes present, and what the stripes are."""
    labelled, ignored = int(counts[: len(table)].sum()), int(counts[table.ignore_index])
    order = sorted(range(len(table)), key=lambda index: (-counts[index], index))
    shares = [
        ClassShare(index, table.classes[index], int(counts[index]), int(counts[index]) / labelled)
        for index in order
        if counts[index]
    ]
    strip = legend_strip(shares, table, width=sheet.width, scale=28 * (_FONT + 2)) if shares else None
    foot = _FONT * 2
    height = sheet.height + foot + (len(strip) if strip is not None else 0)
    canvas = Image.new("RGB", (max(sheet.width, strip.shape[1] if strip is not None else 0), height), _PAPER)
    canvas.paste(sheet, (0, 0))
    if strip is not None:
        canvas.paste(Image.fromarray(strip), (0, sheet.height))
    absent = [name for name, count in zip(table.classes, counts, strict=False) if not count]
    text = f"striped: ignored ({table.ignore_index}), {percent(ignored / max(labelled + ignored, 1))} of all pixels"
    if absent:
        text += f"; not in these images: {', '.join(absent)}"
    font = font_for(text, _FONT)
    text = _shortened(text, font, canvas.width - 2 * _GAP)
    ImageDraw.Draw(canvas).text((_GAP, height - foot), text, _INK, font)
    return canvas


def evenly(count: int, total: int) -> list[int]:
    """Return `count` indices spread over `total` images, the first and the last included."""
    count = min(count, total)
    return [0] if count == 1 else [index * (total - 1) // (count - 1) for index in range(count)]


def by_names(dataset: Dataset, names: Sequence[str]) -> list[int]:
    """Return the indices of images by their names, which may have a suffix or begin with their folders.

    Raises DataError for a name that there is not.
    """
    index = {item.name: number for number, item in enumerate(dataset.items)}
    found = []
    for name in names:
        stem = name.rsplit("/", 1)[-1]
        choices = [choice for choice in (name, stem, stem.rsplit(".", 1)[0]) if choice in index]
        if not choices:
            example = printable(dataset.items[0].name)
            place = f"{dataset.name} {dataset.split}"
            raise DataError(f"there is no image {printable(name)!r} in {place}; names are such as {example}")
        found.append(index[choices[0]])
    return found
