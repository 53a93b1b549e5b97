"""Our own checkpoint format: a directory with ``config.json`` and ``model.safetensors``. No code in either."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hyperseg._files import atomic_write
from hyperseg.models.config import HyperSegConfig
from hyperseg.models.hyperseg import HyperSeg

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
_OFFICIAL_SUFFIXES = (".pth", ".pt")


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, is not one, or does not fit its network; the message says which and how."""


def save(model: HyperSeg, directory: str | os.PathLike) -> Path:
    """Write ``config.json`` and ``model.safetensors`` into ``directory``. If a write fails, both stay as they were.

    Returns:
        The directory.
    """
    directory = Path(directory)
    state = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    with atomic_write(directory / WEIGHTS_FILE) as weights, atomic_write(directory / CONFIG_FILE) as config:
        save_file(state, weights, metadata={"format": "pt"})
        config.write_text(json.dumps(model.config.to_dict(), indent=2) + "\n")
    return directory


def load(path: str | os.PathLike, device: str | torch.device = "cpu") -> HyperSeg:
    """Read what :func:`save` wrote: the directory, or the ``model.safetensors`` in it.

    Returns:
        The network, in eval mode, on ``device``.

    Raises:
        CheckpointError: a file is missing or damaged, or the weights are not of that configuration.
    """
    path = Path(path)
    weights = path / WEIGHTS_FILE if path.is_dir() else path
    config_file = weights.parent / CONFIG_FILE
    form = f"a checkpoint is a directory with {CONFIG_FILE} and {WEIGHTS_FILE}"
    if weights.suffix in _OFFICIAL_SUFFIXES:
        problem = "is a file of the official code, or none of ours" if weights.is_file() else "does not exist"
        raise CheckpointError(f"{weights} {problem}; {form}. For a .pth there is hyperseg.load_official.")
    for file in (weights, config_file):
        if not file.is_file():
            raise CheckpointError(f"{file} does not exist; {form}.")
    try:
        config = HyperSegConfig.from_dict(json.loads(config_file.read_text()))
        model = HyperSeg(config)
    except (ValueError, TypeError, AttributeError, ArithmeticError, RuntimeError, MemoryError) as error:
        raise CheckpointError(f"{config_file} is not a usable configuration: {error}") from error
    try:
        state = load_file(weights)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{weights} is not a readable safetensors file: {error}") from error
    load_state(model, state, str(weights))
    return model.eval().to(device)


def load_state(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """``load_state_dict`` that lists every missing, surplus and misshapen key by name.

    Raises:
        CheckpointError: the keys or shapes are not the network's.
    """
    compare(state, {k: v.shape for k, v in model.state_dict().items()}, source)
    model.load_state_dict(dict(state))


def compare(state: Mapping[str, Tensor], expected: Mapping[str, torch.Size], source: str) -> None:
    """Raise CheckpointError unless ``state`` has exactly these keys and shapes."""
    problems = [f"missing: {key} {tuple(expected[key])}" for key in expected if key not in state]
    problems += [f"surplus: {key}" for key in state if key not in expected]
    problems += [
        f"misshapen: {key} is {tuple(value.shape)}, expected {tuple(expected[key])}"
        for key, value in state.items()
        if key in expected and value.shape != expected[key]
    ]
    if problems:
        shown = "".join(f"\n  {p}" for p in problems[:40])
        more = f"\n  ... and {len(problems) - 40} more" if len(problems) > 40 else ""
        raise CheckpointError(f"{source} does not fit the network, {len(problems)} keys disagree:{shown}{more}")
