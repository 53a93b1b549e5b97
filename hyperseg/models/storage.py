"""The library's own checkpoint format: a folder with ``config.json`` and ``model.safetensors``, neither with code."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hyperseg._files import atomic_write
from hyperseg.models.config import HyperSegConfig
from hyperseg.models.hyperseg import HyperSeg

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


class CheckpointError(ValueError):
    """A checkpoint cannot be read or does not fit its network. The message names the file and the reason."""


def save(model: HyperSeg, directory: str | os.PathLike[str]) -> Path:
    """Write ``config.json`` and ``model.safetensors`` into ``directory``. If a write fails, both stay as they were.

    Returns:
        The directory.

    Raises:
        OSError: a file cannot be written.
    """
    directory = Path(directory)
    state = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    with atomic_write(directory / WEIGHTS_FILE) as weights, atomic_write(directory / CONFIG_FILE) as config:
        save_file(state, weights, metadata={"format": "pt"})
        config.write_text(json.dumps(model.config.to_dict(), indent=2) + "\n")
    return directory


def is_own_format(path: Path) -> bool:
    """Return whether a checkpoint is in the library's own format; otherwise it is taken for an official file.

    A folder or a ``.safetensors`` file is, and so is a file of another name with safetensors contents: the length of a
    header in 8 bytes, then JSON.

    Raises:
        CheckpointError: the file cannot be read.
    """
    if path.is_dir() or path.suffix == ".safetensors":
        return True
    try:
        with open(path, "rb") as file:
            return file.read(9)[8:] == b"{"
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error


def load_own_format(path: Path, device: str | torch.device = "cpu") -> HyperSeg:
    """Load what :func:`save` wrote: ``path`` is the folder, or the weights file in it.

    Returns:
        The network, in eval mode, on ``device``.

    Raises:
        CheckpointError: a file is missing or damaged, or the weights do not fit the configuration.
    """
    weights = path / WEIGHTS_FILE if path.is_dir() else path
    config_file = weights.parent / CONFIG_FILE
    for file in (weights, config_file):
        if not file.is_file():
            raise CheckpointError(
                f"{file} does not exist; a checkpoint is a directory with {CONFIG_FILE} and {WEIGHTS_FILE}."
            )
    unusable = f"{config_file} is not a usable configuration"
    try:
        config = HyperSegConfig.from_dict(json.loads(config_file.read_text()))
    except (ValueError, TypeError, AttributeError, ArithmeticError, RecursionError, OSError) as error:
        raise CheckpointError(f"{unusable}: {error}") from error
    try:
        state = load_file(weights)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{weights} is not a readable safetensors file: {error}") from error
    try:
        model = HyperSeg(config)
    except (ValueError, TypeError, AttributeError, ArithmeticError, RuntimeError, MemoryError) as error:
        raise CheckpointError(f"{unusable}: {error}") from error
    check_state(state, {key: value.shape for key, value in model.state_dict().items()}, str(weights))
    model.load_state_dict(state)
    return model.eval().to(device)


def check_state(state: Mapping[str, Tensor], expected: Mapping[str, torch.Size], source: str) -> None:
    """Check that a state dict has exactly the expected keys and shapes.

    Raises:
        CheckpointError: they differ; the message lists up to 40 missing, surplus and misshapen keys.
    """
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
