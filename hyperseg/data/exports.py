"""Data sets as labelling tools export them, recognised by their files; a `classes.yaml` beside them takes precedence.

labelme (labelme2voc): class_names.txt, JPEGImages, and the labels in SegmentationClassPNG or, by newer versions,
SegmentationClass. `_background_` is class 0, `__ignore__` is ignored.

CVAT ("Segmentation mask 1.1"): labelmap.txt with the colour of each class, ImageSets/Segmentation/SPLIT.txt,
SegmentationClass, JPEGImages (choose "save images"). The classes are in the order of labelmap.txt.

Supervisely ("Export as masks"): meta.json, obj_class_to_machine_color.json, and per data set DATASET/img and
DATASET/masks_machine; or DATASET/masks with the colours in meta.json. Black pixels, which have no object, are the class
"background", the first.

Splits: those of CVAT are its lists, those of Supervisely its data sets; "all" is all of them. labelme has none: give
"all", or put one export per split in the root: root/train, root/val.
"""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from hyperseg._files import printable
from hyperseg.data.dataset import Dataset, Item
from hyperseg.data.errors import DataError
from hyperseg.data.files import DataFile
from hyperseg.data.labels import Color, LabelSet, bit_shuffle_color
from hyperseg.data.listing import first_of, folders, image_files, lines, splits_of
from hyperseg.data.masks import IGNORED, ColorDecoder, IndexDecoder, MaskDecoder, identity
from hyperseg.data.matching import pairs, settle
from hyperseg.images import kinds

_BLACK: Color = (0, 0, 0)
_MACHINE_COLORS = "obj_class_to_machine_color.json"


def open_export(root: Path, split: str, unmatched: str) -> Dataset | None:
    """Open a split of the export in `root`, or of those in `root/SPLIT`; None if there is none. Raises DataError.

    unmatched: see :func:`hyperseg.data.matching.pairs`.
    """
    for recognise in (_labelme, _cvat, _supervisely):
        if (export := recognise(root, split, unmatched)) is not None:
            return export
    parts = [part.strip() for part in split.split("+")]
    exports = [open_export(root / part, "all", unmatched) for part in parts if part and (root / part).is_dir()]
    found = [export for export in exports if export is not None]
    if not found or len(found) < len(parts):
        return None
    for export, part in zip(found, parts, strict=True):
        if (export.label_set, export.decoder) != (found[0].label_set, found[0].decoder):
            raise DataError(f"{printable(root / part)} has other classes than {printable(root / parts[0])}")
    items = [item for export in found for item in export.items]
    form = "; ".join(export.form for export in found)
    return Dataset("folder", split, form, found[0].label_set, items, found[0].decoder)


def _labelme(root: Path, split: str, unmatched: str) -> Dataset | None:
    path = root / "class_names.txt"
    names_of_masks = ("SegmentationClassPNG", "SegmentationClass")
    masks = next((root / name for name in names_of_masks if (root / name).is_dir()), None)
    if not path.is_file() or masks is None or not (root / "JPEGImages").is_dir():
        return None
    if split != "all":
        raise DataError(
            f"the export of labelme in {printable(root)} has no splits; give the split all, or put one export per "
            f"split in folders such as {printable(root / split)}"
        )
    names = tuple(name for name in lines(path) if name != "__ignore__")
    label_set = _label_set(path, names, background=0 if names[:1] == ("_background_",) else None)
    items, note = pairs(image_files(root / "JPEGImages"), image_files(masks), masks, unmatched)
    form = f"exported by labelme, {len(names)} classes, labels from {masks.name}, in {printable(root)}{note}"
    return Dataset("folder", split, form, label_set, items, identity(len(names)))


def _cvat(root: Path, split: str, unmatched: str) -> Dataset | None:
    path, lists, masks = root / "labelmap.txt", root / "ImageSets" / "Segmentation", root / "SegmentationClass"
    if not path.is_file() or not masks.is_dir() or not lists.is_dir():
        return None
    if not (root / "JPEGImages").is_dir():
        raise DataError(f"there is no folder {printable(root / 'JPEGImages')}; export from CVAT with the images saved")
    names, colors, ignored = _labelmap(path)
    label_set = _label_set(path, names, colors, names.index("background") if "background" in names else None)
    known = {place.stem: place for place in sorted(lists.glob("*.txt"))}
    parts = list(known) if split == "all" else splits_of(split, known, f"the export in {printable(root)}")
    listed = sorted({line.strip('"') for part in parts for line in lines(known[part])})
    images = {name: _with_any_suffix(root / "JPEGImages", name) for name in listed}
    if missing := [name for name, file in images.items() if file is None]:
        raise DataError(f"missing in {printable(root / 'JPEGImages')}: {first_of(missing, 'image')} of {lists.name}")
    labels = {name.replace("/", "_"): _with_any_suffix(masks, name) for name in listed}
    items, note = settle(
        {name.replace("/", "_"): file for name, file in images.items() if file is not None},
        {name: file for name, file in labels.items() if file is not None},
        [],
        masks,
        unmatched,
    )
    table = {**{color: number for number, color in enumerate(colors)}, **dict.fromkeys(ignored, IGNORED)}
    indices = IndexDecoder({**{number: number for number in range(len(names))}, IGNORED: IGNORED})
    decoder = MaskDecoder(indices, ColorDecoder(table), palette_first=True)
    form = f"exported by CVAT, {len(names)} classes, lists {', '.join(parts)}, in {printable(root)}{note}"
    return Dataset("folder", split, form, label_set, items, decoder)


def _with_any_suffix(folder: Path, name: str) -> DataFile | None:
    """Return the image of a listed name, which may have folders and no suffix."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        return None
    for suffix in (".png", ".jpg", ".jpeg", *kinds.readable_suffixes()):
        for ending in (suffix, suffix.upper()):
            if (path := folder / f"{name}{ending}").is_file():
                return DataFile(str(path))
    return None


def _labelmap(path: Path) -> tuple[tuple[str, ...], tuple[Color, ...], list[Color]]:
    """Return names and colours of the classes, and the colours of what is ignored ("ignored" and such)."""
    names, colors, ignored = [], [], []
    for line in lines(path):
        if line.startswith("#"):
            continue
        match = re.fullmatch(r"(.+?):(\d+),\s*(\d+),\s*(\d+)(:[^:]*){0,2}", line)
        if match is None or max(map(int, match.group(2, 3, 4))) > 255:
            raise DataError(
                f"{printable(path)} has the line {printable(line)!r}; expected name:R,G,B:: with the masks' colour"
            )
        color = (int(match[2]), int(match[3]), int(match[4]))
        if match[1].strip() in ("ignored", "ignore", "__ignore__"):
            ignored.append(color)
        else:
            names.append(match[1].strip())
            colors.append(color)
    return tuple(names), tuple(colors), ignored


def _supervisely(root: Path, split: str, unmatched: str) -> Dataset | None:
    machine, meta = root / _MACHINE_COLORS, root / "meta.json"
    if not machine.is_file() and not meta.is_file():
        return None
    kind, path = ("masks_machine", machine) if machine.is_file() else ("masks", meta)
    known = {place.name: place for place in folders(root) if (place / "img").is_dir() and (place / kind).is_dir()}
    if not known:
        return None
    parts = list(known) if split == "all" else splits_of(split, known, f"the export in {printable(root)}")
    colors = _read_json(path, _machine_colors if machine.is_file() else _meta_colors)
    if _BLACK not in colors.values():
        if "background" in colors:
            raise DataError(f"{printable(path)} has a class background that is not black; black has no class then")
        colors = {"background": _BLACK, **colors}
    if len(set(colors.values())) < len(colors):
        raise DataError(f"{printable(path)} has one colour for two classes; give each its own and export again")
    names, values = tuple(colors), list(colors.values())
    shown = None if machine.is_file() else tuple(values)  # those for machines are nearly black
    label_set = _label_set(path, names, shown, background=values.index(_BLACK))
    found: list[tuple[str, Item]] = []
    notes = ""
    for part in parts:
        masks = known[part] / kind
        items, note = pairs(image_files(known[part] / "img"), image_files(masks), masks, unmatched)
        found += [(part, item) for item in items]
        notes += note
    if len({item.name for _, item in found}) < len(found):  # data sets may have images of one name
        found = [(part, replace(item, name=f"{part}_{item.name}")) for part, item in found]
    form = (
        f"exported by Supervisely, {len(names)} classes, labels from {kind} of {', '.join(parts)}, black is "
        f"{names[values.index(_BLACK)]}, in {printable(root)}{notes}"
    )
    decoder = ColorDecoder({color: number for number, color in enumerate(values)})
    return Dataset("folder", split, form, label_set, [item for _, item in found], decoder)


def _read_json(path: Path, parse: Callable[[object], dict[str, Color]]) -> dict[str, Color]:
    try:
        return parse(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{printable(path)} cannot be used ({printable(str(error))}); export again") from None


def _machine_colors(document: object) -> dict[str, Color]:
    if not isinstance(document, dict):
        raise ValueError("expected a mapping of classes to colours")
    colors = {}
    for name, color in document.items():
        red, green, blue = color
        if not all(isinstance(value, int) and 0 <= value <= 255 for value in color):
            raise ValueError(f"{name} has the colour {color}")
        colors[str(name)] = (red, green, blue)
    return colors


def _meta_colors(document: object) -> dict[str, Color]:
    if not isinstance(document, dict):
        raise ValueError("expected a mapping with the key classes")
    colors = {}
    for row in document["classes"]:
        text = row["color"]
        if not re.fullmatch(r"#[0-9A-Fa-f]{6}", text):
            raise ValueError(f"{row['title']} has the colour {text}")
        colors[str(row["title"])] = (int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16))
    return colors


def _label_set(
    path: Path, names: tuple[str, ...], colors: tuple[Color, ...] | None = None, background: int | None = None
) -> LabelSet:
    """Return the label set of names in a file. Raises DataError."""
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{printable(path)} has the class {printable(twice)!r} twice")
    try:
        shown = colors or tuple(bit_shuffle_color(number) for number in range(len(names)))
        return LabelSet("custom", names, shown, background=background)
    except ValueError as error:
        raise DataError(f"{printable(path)}: {error}") from None
