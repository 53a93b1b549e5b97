"""A small network, a small folder of images and masks, and runs that train on them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hyperseg.models import VARIANTS
from hyperseg.training import TrainingConfig, load_recipe
from hyperseg.training.state import load_state, state_files

CLASSES = ("sky", "box", "grass")
# With 0.4 million parameters, so that a state is written in milliseconds.
TINY = VARIANTS["hyperseg-s-camvid"].replace(
    name="tiny",
    encoder="mobilenetv3_small_050",
    static_padding_size=None,
    head_channels=128,
    feature_channels=(4, 4, 4, 8, 16),
    level_channels=(16, 16, 8, 8),
    weight_groups=(8, 8, 8, 4, 4),
)
SMALL = [
    "model.name=tiny",
    "model.encoder_weights=none",
    "augmentation.crop=[64,64]",
    "schedule.steps=6",
    "schedule.warmup=2",
    "data.workers=0",
    "validation.every=null",
    "run.ema=null",
    "validation.pictures=0",
    "run.save_every=100",
    "run.keep=100",
    "batch=2",
]


@pytest.fixture(autouse=True, scope="module")
def tiny_network():
    """Make :data:`TINY` a network that recipes can name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(VARIANTS, "tiny", TINY)
        yield


def make_folder(root: Path, train: int = 5, val: int = 2, size: tuple[int, int] = (64, 64), blank: tuple = ()) -> Path:
    """Write a data set of boxes on grass below a sky; the masks of training images in ``blank`` are all ignored."""
    random = np.random.default_rng(0)
    height, width = size
    colors = np.array([[60, 90, 200], [220, 60, 40], [80, 160, 60]], np.uint8)
    for split, count in (("train", train), ("val", val)):
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for i in range(count):
            labels = np.zeros(size, np.uint8)
            labels[height * 2 // 3 :] = 2
            top, left = random.integers(0, height // 2), random.integers(0, width // 2)
            labels[top : top + height // 3, left : left + width // 3] = 1
            noise = random.integers(-20, 20, (*size, 3))
            image = (colors[labels] + noise).clip(0, 255).astype(np.uint8)
            labels[:2] = 255
            if split == "train" and i in blank:
                labels[:] = 255
            Image.fromarray(image).save(root / "images" / split / f"photo{i}.png")
            Image.fromarray(labels).save(root / "masks" / split / f"photo{i}.png")
    (root / "classes.yaml").write_text(f"classes: [{', '.join(CLASSES)}]\n")
    return root


def small(root: Path, *changes: str) -> TrainingConfig:
    """Return the recipe of a run of six steps that takes seconds."""
    return load_recipe("folder", [f"data.root={json.dumps(str(root))}", *SMALL, *changes])


def state_at(run: Path, step: int) -> dict:
    """Return the state that a run wrote at a step."""
    return load_state(run / "states" / f"step-{step:08d}.pt")


def last_state(run: Path) -> dict:
    """Return the newest state of a run."""
    return load_state(state_files(run / "states")[-1])


def lines(run: Path, name: str = "log.jsonl") -> list[dict]:
    """Return the records of a log."""
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def differences(one, two, path: str = "") -> list[str]:
    """Return the places where two states are not bitwise equal."""
    if isinstance(one, torch.Tensor):
        same = isinstance(two, torch.Tensor) and one.dtype == two.dtype and torch.equal(one, two)
        return [] if same else [path]
    if isinstance(one, dict):
        if not isinstance(two, dict) or one.keys() != two.keys():
            return [path]
        return [place for key in one for place in differences(one[key], two[key], f"{path}.{key}")]
    if isinstance(one, list | tuple):
        if len(one) != len(two):
            return [path]
        pairs = zip(one, two, strict=True)
        return [place for i, (a, b) in enumerate(pairs) for place in differences(a, b, f"{path}[{i}]")]
    return [] if one == two else [path]
