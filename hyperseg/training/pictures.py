"""Pictures of a run: validation images with their predictions and labels, and curves of its log."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from hyperseg._extras import require
from hyperseg._files import atomic_write, printable
from hyperseg.data.drawing import overlay
from hyperseg.data.labels import LabelSet, colorize
from hyperseg.training.config import ConfigError
from hyperseg.training.log import STEPS, VALIDATIONS, read_lines
from hyperseg.training.validation import Picture

WIDTH = 480  # of an image in a picture
_GAP = 4


def save_pictures(pictures: Sequence[Picture], classes: LabelSet, path: Path) -> None:
    """Write a JPEG with a row per image: the image, the predictions over it, and the labels."""
    rows = [_row(picture, classes) for picture in pictures]
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, _GAP), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    with atomic_write(path) as temporary:
        Image.fromarray(np.concatenate(padded)[:-_GAP]).save(temporary, quality=90)


def _row(picture: Picture, classes: LabelSet) -> np.ndarray:
    parts = [
        np.asarray(picture.image),
        overlay(np.asarray(picture.image), picture.predictions, classes, alpha=0.7),
        colorize(np.asarray(picture.labels), classes),
    ]
    height, width = picture.labels.shape
    size = (WIDTH, max(1, round(height * WIDTH / width))) if width > WIDTH else (width, height)
    small = [np.asarray(Image.fromarray(np.ascontiguousarray(part)).resize(size)) for part in parts]
    gap = np.full((small[0].shape[0], _GAP, 3), 255, np.uint8)
    return np.concatenate([small[0], gap, small[1], gap, small[2]], axis=1)


def plot(folder: Path) -> Path:
    """Draw loss, learning rate and validation mIoU of a run over its steps; return the PNG, curves.png in its folder.

    Raises:
        ConfigError: the folder has no log. MissingPackageError: matplotlib is not installed.
    """
    steps, validations = read_lines(folder / STEPS), read_lines(folder / VALIDATIONS)
    if not steps:
        raise ConfigError(f"{printable(folder)} has no {STEPS} with steps; give the --output of a run")
    purpose = "a plot of a run"
    figure = require("matplotlib.figure", "plot", purpose).Figure(figsize=(9, 5), layout="constrained")
    require("matplotlib.backends.backend_agg", "plot", purpose).FigureCanvasAgg(figure)
    axes = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    known = [record for record in steps if record["loss"] is not None and record["labelled"]]
    numbers, losses = [record["step"] for record in known], [record["loss"] for record in known]
    axes[0].plot(numbers, losses, color="tab:blue", alpha=0.25, linewidth=0.8)
    window = max(1, len(losses) // 40)
    if len(losses) >= window:
        smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
        axes[0].plot(numbers[window - 1 :], smooth, color="tab:blue", label=f"loss (mean of {window})")
    axes[0].set_ylabel("loss")
    axes[0].grid(alpha=0.3)
    handles, labels = axes[0].get_legend_handles_labels()
    scored = [record for record in validations if record["miou"] is not None]
    if scored:
        right = axes[0].twinx()
        right.plot(
            [record["step"] for record in scored],
            [100 * record["miou"] for record in scored],
            color="tab:orange",
            marker="o",
            label="validation mIoU (standard)",
        )
        right.set_ylabel("mIoU [%]")
        right.set_ylim(0, 110 * max(record["miou"] for record in scored) or 100)
        more = right.get_legend_handles_labels()
        handles, labels = handles + more[0], labels + more[1]
    figure.legend(handles, labels, loc="outside upper center", ncols=2)
    axes[1].plot([record["step"] for record in steps], [record["lr"] for record in steps], color="tab:green")
    axes[1].set_ylabel("learning rate")
    axes[1].set_xlabel("step")
    axes[1].grid(alpha=0.3)
    path = folder / "curves.png"
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=120)
    return path
