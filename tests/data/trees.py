"""Data sets in their published layouts, made of tiny images: for tests of everything that opens a data set.

Each function writes below `root` and returns the labels by image name, uint8 with 255 for ignored pixels.
"""

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from hyperseg.data.cityscapes import TRAIN_ID_TO_ID
from hyperseg.data.labels import CAMVID, CAMVID_11, CAMVID_32, VOC, LabelSet, palette

Labels = dict[str, np.ndarray]


def picture(size: tuple[int, int], seed: int) -> np.ndarray:
    """Return a smooth image of random colours, uint8 [H, W, 3], which JPEG keeps roughly."""
    colors = np.random.default_rng(seed).integers(0, 256, (2, 3, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(colors).resize(size[::-1], Image.Resampling.BILINEAR))


def class_map(size: tuple[int, int], classes: int, seed: int, ignored: bool = True) -> np.ndarray:
    """Return blocks of random classes, uint8 [H, W], and two rows of 255 at the bottom if `ignored`."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, (-(-size[0] // 4), -(-size[1] // 4)), dtype=np.uint8)
    labels = np.ascontiguousarray(labels.repeat(4, 0).repeat(4, 1)[: size[0], : size[1]])
    if ignored:
        labels[-2:] = 255
    return labels


def save(array: np.ndarray, path: Path, table: LabelSet | None = None) -> None:
    """Write an image; with `table` as a palette image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    if table is not None:
        image.putpalette(palette(table))
    image.save(path)


def in_colors(labels: np.ndarray, table: LabelSet, ignored: tuple[int, int, int] = (1, 2, 3)) -> np.ndarray:
    """Return labels in the colours of a label set, 255 in the colour `ignored`."""
    colors = np.full((256, 3), ignored, np.uint8)
    colors[: len(table)] = table.colors
    return colors[labels]


def folder_tree(
    root: Path,
    splits: Mapping[str, int] | None = None,
    classes: Sequence[str] = ("road", "car", "person"),
    size: tuple[int, int] = (24, 32),
    colors: Sequence[Sequence[int]] | None = None,
    **settings: object,
) -> Labels:
    """Write `images/SPLIT`, `masks/SPLIT` and `classes.yaml`: grey masks, or RGB masks if there are colours.

    splits: number of images of each, {"train": 3, "val": 2} by default; names are "train_0" and so on.
    settings: other keys of classes.yaml.
    """
    written: Labels = {}
    table = None if colors is None else LabelSet("tree", tuple(classes), tuple((r, g, b) for r, g, b in colors))
    for split, count in (splits or {"train": 3, "val": 2}).items():
        for number in range(count):
            name = f"{split}_{number}"
            seed = len(written)
            labels = class_map(size, len(classes), seed, ignored=table is None)
            save(picture(size, seed), root / "images" / split / f"{name}.jpg")
            save(labels if table is None else in_colors(labels, table), root / "masks" / split / f"{name}.png")
            written[name] = labels
    document: dict[str, object] = {"classes": list(classes), **settings}
    if colors is not None:
        document["colors"] = [list(color) for color in colors]
    (root / "classes.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    return written


def cityscapes_tree(
    root: Path,
    splits: Mapping[str, int] | None = None,
    kind: str = "gtFine",
    files: Sequence[str] = ("labelIds",),
    size: tuple[int, int] = (64, 128),
    zipped: bool = False,
) -> Labels:
    """Write `leftImg8bit` and `gtFine` or `gtCoarse` of towns, two images in each; split test has void labels.

    files: which label files, "labelIds" and "labelTrainIds".
    zipped: as the archives that the website has.
    """
    written: Labels = {}
    ids = np.zeros(256, np.uint8)
    ids[: len(TRAIN_ID_TO_ID)] = TRAIN_ID_TO_ID
    ids[255] = 4  # static
    for split, count in (splits or {"train": 3, "val": 2}).items():
        for number in range(count):
            town = ("aachen", "zurich")[number // 2 % 2]
            name = f"{town}_{len(written):06d}_000019"
            seed = len(written)
            labels = class_map(size, len(TRAIN_ID_TO_ID), seed)
            if split == "test":
                labels[:] = 255
            save(picture(size, seed), root / "leftImg8bit" / split / town / f"{name}_leftImg8bit.png")
            for file in files:
                stored = ids[labels] if file == "labelIds" else labels
                save(stored, root / kind / split / town / f"{name}_{kind}_{file}.png")
            written[name] = labels
    if zipped:
        trains_extra = "train_extra" in (splits or {})
        _zip(root, "leftImg8bit", f"leftImg8bit_{'trainextra' if trains_extra else 'trainvaltest'}.zip")
        _zip(root, kind, {"gtFine": "gtFine_trainvaltest.zip", "gtCoarse": "gtCoarse.zip"}[kind])
    return written


def _zip(root: Path, folder: str, name: str) -> None:
    """Replace a folder by an archive."""
    with zipfile.ZipFile(root / name, "w") as archive:
        archive.writestr("README", "about the data\n")
        for path in sorted((root / folder).rglob("*"), reverse=True):
            if path.is_file():
                archive.write(path, path.relative_to(root).as_posix())
                path.unlink()
            else:
                path.rmdir()
    (root / folder).rmdir()


def camvid_tree(
    root: Path,
    form: str = "camvid",
    splits: Mapping[str, int] | None = None,
    size: tuple[int, int] = (36, 48),
    suffix: str = ".png",
    lists: bool = True,
) -> Labels:
    """Write a form of CamVid: "camvid", "camvid-kaggle", "camvid-32" (both folders of Kaggle) or "stills".

    suffix: of the images; lists always say .png.
    lists: whether SegNet's form has its lists.
    """
    written: Labels = {}
    table = {"camvid": CAMVID_11, "camvid-kaggle": CAMVID}.get(form, CAMVID_32)
    for split, count in (splits or {"train": 3, "val": 2, "test": 2}).items():
        lines = []
        for number in range(count):
            name = f"{('0001TP', '0016E5')[number % 2]}_{len(written):06d}"
            seed = len(written)
            labels = class_map(size, len(table), seed, ignored=form in ("camvid", "camvid-kaggle"))
            if form == "camvid":
                folders = root / split, root / f"{split}annot" / f"{name}.png"
                save(np.where(labels == 255, 11, labels).astype(np.uint8), folders[1])
            else:
                folders = {
                    "stills": (root / "701_StillsRaw_full", root / "LabeledApproved_full" / f"{name}_L.png")
                }.get(form, (root / split, root / f"{split}_labels" / f"{name}_L.png"))
                save(in_colors(labels, table), folders[1])
            save(picture(size, seed), folders[0] / f"{name}{suffix}")
            lines.append(f"/SegNet/CamVid/{split}/{name}.png /SegNet/CamVid/{split}annot/{name}.png\n")
            written[name] = labels
        if form == "camvid" and lists:
            (root / f"{split}.txt").write_text("".join(lines))
    return written


def voc_tree(root: Path, size: tuple[int, int] = (30, 40), devkit: bool = True) -> Labels:
    """Write VOC2012 with SBD: train 3, val 2, trainval, train_aug 4 (one image only in SegmentationClassAug), test 1.

    devkit: whether it is in `root/VOCdevkit/VOC2012` rather than in `root`.
    """
    base = root / "VOCdevkit" / "VOC2012" if devkit else root
    written: Labels = {}
    names = {f"2007_{number:06d}": class_map(size, len(VOC), number) for number in range(7)}
    splits = {"train": [0, 1, 2], "val": [3, 4], "trainval": [0, 1, 2, 3, 4], "test": [6], "train_aug": [0, 1, 2, 5]}
    ordered = list(names)
    for number, (name, labels) in enumerate(names.items()):
        save(picture(size, number), base / "JPEGImages" / f"{name}.jpg")
        if number == 6:
            continue
        written[name] = labels
        if number != 5:
            save(labels, base / "SegmentationClass" / f"{name}.png", VOC)
        save(labels, base / "SegmentationClassAug" / f"{name}.png")
    for split, numbers in splits.items():
        path = base / "ImageSets" / "Segmentation" / f"{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{ordered[number]}\n" for number in numbers))
    return written


def labelme_tree(root: Path, newer: bool = False) -> Labels:
    """Write what labelme2voc exports; `newer` versions have the PNG files in SegmentationClass."""
    written: Labels = {}
    names = ("_background_", "road", "car")
    table = LabelSet("tree", names, tuple((index * 40, 0, 128) for index in range(3)))
    for number in range(3):
        labels = class_map((24, 32), 3, number)
        save(picture((24, 32), number), root / "JPEGImages" / f"frame_{number}.jpg")
        folder = "SegmentationClass" if newer else "SegmentationClassPNG"
        save(labels, root / folder / f"frame_{number}.png", table)
        other = root / ("SegmentationClassNpy" if newer else "SegmentationClass") / f"frame_{number}.npy"
        other.parent.mkdir(exist_ok=True)
        np.save(other, np.where(labels == 255, -1, labels.astype(np.int32)))
        written[f"frame_{number}"] = labels
    (root / "class_names.txt").write_text("\n".join(names))
    return written


def cvat_tree(root: Path, palette_images: bool = False) -> Labels:
    """Write what CVAT exports as "Segmentation mask 1.1": lists train (2 images) and val (1 image)."""
    written: Labels = {}
    table = LabelSet("tree", ("background", "car", "road"), ((0, 0, 0), (10, 20, 200), (128, 64, 128)))
    for split, numbers in {"train": (0, 1), "val": (2,)}.items():
        for number in numbers:
            labels = class_map((24, 32), 3, number, ignored=False)
            save(picture((24, 32), number), root / "JPEGImages" / f"frame {number}.png")
            path = root / "SegmentationClass" / f"frame {number}.png"
            path.parent.mkdir(exist_ok=True)
            image = Image.fromarray(in_colors(labels, table))
            (image.quantize(3) if palette_images else image).save(path)
            save(picture((24, 32), 50 + number), root / "SegmentationObject" / f"frame {number}.png")
            written[f"frame {number}"] = labels
        path = root / "ImageSets" / "Segmentation" / f"{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"frame {number}\n" for number in numbers))
    rows = [f"{name}:{r},{g},{b}::\n" for name, (r, g, b) in zip(table.classes, table.colors, strict=True)]
    (root / "labelmap.txt").write_text("# label:color_rgb:parts:actions\n" + "".join(rows))
    return written


def supervisely_tree(root: Path, machine: bool = True) -> Labels:
    """Write what Supervisely exports as masks: data sets ds1 (2 images) and ds2 (1 image)."""
    written: Labels = {}
    human = ((0, 0, 0), (18, 52, 86), (171, 205, 239))
    colors = ((0, 0, 0), (1, 1, 1), (2, 2, 2)) if machine else human
    table = LabelSet("tree", ("background", "kiwi", "lemon"), colors)
    for name, numbers in {"ds1": (0, 1), "ds2": (2,)}.items():
        for number in numbers:
            labels = class_map((24, 32), 3, number, ignored=False)
            save(picture((24, 32), number), root / name / "img" / f"photo{number}.jpeg")
            kind = "masks_machine" if machine else "masks"
            save(in_colors(labels, table), root / name / kind / f"photo{number}.png")
            written[f"photo{number}"] = labels
    classes = [
        {"title": title, "shape": "polygon", "color": "#" + bytes(human[index + 1]).hex()}
        for index, title in enumerate(("kiwi", "lemon"))
    ]
    (root / "meta.json").write_text(json.dumps({"classes": classes, "tags": []}))
    if machine:
        (root / "obj_class_to_machine_color.json").write_text(json.dumps({"kiwi": [1, 1, 1], "lemon": [2, 2, 2]}))
    return written
