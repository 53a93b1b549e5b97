"""The original transforms: hashes of what the official code (commit aedc580) returned for the same inputs and seeds.

It ran with torchvision 0.29.2 and Pillow 13.0, with what these have removed supplied from outside: the attribute
`resample` of torchvision's RandomRotation, NumPy's old names of types, and Pillow's filters in place of torchvision's.
"""

import hashlib
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from hyperseg.data.pipeline.official import Generators, transform, transform_for_evaluation
from hyperseg.data.pipeline.recipes import Augmentation, ColorJitter, EvalResize
from hyperseg.data.pipeline.samples import Sampler

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "official_transforms.json").read_text())
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZES, SEEDS = [(60, 90), (100, 72)], range(6)
RECIPES = {
    "crop": Augmentation((48, 64), (0.25, 2.0)),
    "crop-jitter": Augmentation((48, 64), (0.375, 1.5), jitter=ColorJitter(0.25, 0.25, 0.25, 0.25)),
    "pad": Augmentation((128, 128), (0.25, 0.9), crop=False, rotation=30.0, jitter=ColorJitter(0.5, 0.5, 0.5, 0.5)),
}
EVALUATION = {
    "bicubic": EvalResize((40, 72), "bicubic", labels=True),
    "bilinear": EvalResize((40, 72), "bilinear"),
    "pad": EvalResize((128, 128), "pad", labels=True),
}


def inputs(size):
    """An image with smooth and rough parts, and labels, from integer arithmetic alone."""
    y, x = np.mgrid[: size[0], : size[1]]
    channels = [(3 * y + x * x // 7) % 256, (y * x // 5 + 40) % 256, (x // 8 + y // 6) % 2 * 140 + (7 * x + y) % 60]
    labels = (x // 11 + 3 * (y // 9)) % 19
    return np.stack(channels, 2).astype(np.uint8), labels.astype(np.uint8)


def digest(tensor):
    about = f"{tensor.dtype} {list(tensor.shape)} ".encode()
    return hashlib.sha256(about + tensor.contiguous().numpy().tobytes()).hexdigest()[:16]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", RECIPES)
def test_training_samples_equal_the_official_ones(name, size, seed):
    found = transform(*inputs(size), RECIPES[name], Generators.seeded(seed, seed), MEAN, STD)
    assert [digest(tensor) for tensor in found] == GOLDEN["train"][name][f"{size[0]}x{size[1]} {seed}"]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", EVALUATION)
def test_validation_samples_equal_the_official_ones(name, size):
    found = transform_for_evaluation(*inputs(size), EVALUATION[name], MEAN, STD)
    assert [digest(tensor) for tensor in found] == GOLDEN["evaluation"][name][f"{size[0]}x{size[1]}"]


def test_seeds_give_the_states_of_the_global_generators():
    generators = Generators.seeded(5, 6)
    random.seed(5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        assert torch.equal(torch.rand(3, generator=generators.torch), torch.rand(3))
    assert [generators.python.random() for _ in range(3)] == [random.random() for _ in range(3)]


def test_the_generators_of_samples_differ():
    found = [Generators.of(Sampler(1).sample(k).draws) for k in (0, 0, 1)]
    numbers = [(g.python.random(), float(torch.rand(1, generator=g.torch))) for g in found]
    assert numbers[0] == numbers[1]
    assert numbers[0][0] != numbers[2][0]
    assert numbers[0][1] != numbers[2][1]
