"""Outputs of the official code, for weights and inputs that can be regenerated (tests/golden/README.md)."""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hyperseg.models import HyperSeg, create_model, official

DATA = Path(__file__).parent
VARIANTS = {
    "hyperseg-s-camvid": "camvid-s",
    "hyperseg-l-camvid": "camvid-l",
    "hyperseg-m-cityscapes": "city-m",
    "hyperseg-s-cityscapes": "city-s",
    "hyperseg-l-voc": "voc-l",
}


def values(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return pseudo-random float32 values of unit variance that depend on the name alone."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    raw = np.random.PCG64(seed).random_raw(int(np.prod(shape, dtype=np.int64)))
    z = ((raw >> np.uint64(11)) * 2.0**-53 - 0.5) * np.sqrt(12)
    return z.astype(np.float32).reshape(shape)


def official_state(name: str) -> dict[str, Tensor]:
    """Return the golden weights under the network's official keys, without cached coordinates."""
    keys = json.loads((DATA / f"keys_{VARIANTS[name]}.json").read_text())
    return {
        key: torch.from_numpy(np.asarray(_tensor(key, tuple(entry["shape"]))))
        for key, entry in keys.items()
        if not key.startswith("decoder.coord")
    }


def _tensor(key: str, shape: tuple[int, ...]) -> np.ndarray:
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    z = values(key, shape)
    if key.endswith("running_mean") or key.endswith("bias"):
        return np.float32(0.1) * z
    if key.endswith("running_var"):
        return np.exp(np.float32(0.2) * z)
    if len(shape) == 1:
        return 1 + np.float32(0.1) * z
    gain = 1.0 if "signal2weights" in key or "weight_mapper.out_conv" in key else 1.4
    return np.float32(gain / np.sqrt(np.prod(shape[1:]))) * z


def golden_model(name: str, **changes) -> HyperSeg:
    """Return the network with its golden weights."""
    model = create_model(name, **changes)
    official.from_official(model, official_state(name))
    return model


def golden_figures(name: str) -> dict[str, np.ndarray]:
    """Return the stored fields."""
    with np.load(DATA / f"{VARIANTS[name]}.npz") as stored:
        return dict(stored)


def images() -> Tensor:
    return torch.from_numpy(values("input", (1, 3, 128, 256)))


def train_batch(classes: int) -> tuple[Tensor, Tensor]:
    """Return images and labels of the training step."""
    target = np.abs(values("train_target", (2, 128, 256)).astype(np.float64)) * classes / 1.75
    target = np.clip(target.astype(np.int64), 0, classes - 1)
    target[:, :4] = 255
    return torch.from_numpy(values("train_input", (2, 3, 128, 256))), torch.from_numpy(target)


def subsample(t: Tensor, limit: int = 6000) -> np.ndarray:
    """Return the evenly strided samples of a tensor that are stored."""
    flat = t.detach().reshape(-1)
    return flat[:: -(-flat.numel() // limit)].numpy()


def statistics(t: Tensor) -> np.ndarray:
    """Return mean, standard deviation and largest magnitude."""
    t = t.detach().double()
    return np.array([t.mean(), t.std(), t.abs().max()])
