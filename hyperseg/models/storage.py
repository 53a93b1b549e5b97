"""The library's own checkpoint format: a folder with ``config.json`` and ``model.safetensors``, neither with code.

The configuration is stored twice. The copy in the metadata of ``model.safetensors`` decides, so that one rename
replaces the whole checkpoint: a reader sees the old network or the new one, also if the process that saves is killed.
``config.json`` is for people. Checkpoints of older versions have it alone.
"""

import functools
import json
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Tensor, nn

from hyperseg._files import atomic_writes
from hyperseg.models.config import CONFIG_FILE as CONFIG_FILE
from hyperseg.models.config import WEIGHTS_FILE as WEIGHTS_FILE
from hyperseg.models.config import HyperSegConfig
from hyperseg.models.errors import CheckpointError
from hyperseg.models.hyperseg import HyperSeg
from hyperseg.models.state import (
    check_finite,
    check_state,
    checkpoint_path,
    not_finite,
    plain_keys,
)
from hyperseg.models.wrappers import unwrap

_CONFIG_KEY = "hyperseg_config"
_UNUSABLE = "is not a usable configuration"


def save(model: nn.Module, directory: str | os.PathLike[str]) -> Path:
    """Write ``config.json`` and ``model.safetensors`` into ``directory``. If anything fails, both stay as they were.

    A reader, and the next run if this process is killed, finds the old checkpoint or the new one, never parts of both.
    A network with NaN or infinity is written, with a warning; :func:`hyperseg.load` refuses it unless its
    ``check_finite`` is False.

    Args:
        model: the network, also inside DataParallel, DistributedDataParallel, AveragedModel (its averaged weights are
            saved) or torch.compile, in any nesting.
        directory: created if it is missing. The weights are stored in their dtype, from any device.

    Returns:
        The directory.

    Raises:
        TypeError: there is not exactly one network in ``model``.
        ValueError: the network is not the one that its configuration describes, so it could not be loaded.
        OSError: a file cannot be written.
    """
    directory = checkpoint_path(directory)
    network = unwrap(model)
    state = plain_state(network)
    text = json.dumps(network.config.to_dict(), indent=2, allow_nan=False)
    data = serialise(state, metadata={"format": "pt", _CONFIG_KEY: text})
    warn_if_not_finite(state, directory)
    # The weights first: they contain the configuration, and a new config.json beside old weights would be wrong.
    files = [directory / WEIGHTS_FILE, directory / CONFIG_FILE]
    with atomic_writes(files, durable=True) as (weights, config):
        weights.write_bytes(data)
        config.write_text(text + "\n")
    return directory


def plain_state(network: HyperSeg) -> dict[str, Tensor]:
    """Return the network's state dict as contiguous tensors on the CPU, checked to be what loading expects.

    Raises:
        ValueError: it is not.
    """
    state = network.state_dict()
    if meta := [name for name, tensor in state.items() if tensor.is_meta]:
        raise ValueError(f"{meta[0]} is on the meta device and has no values; load weights before you save.")
    try:
        check_state(state, _expected(network.config), "What would be saved")
    except CheckpointError as error:
        raise ValueError(
            f"{error}\nThe network was changed after it was built (a parametrization, a pruned or replaced layer, "
            "another config), so hyperseg.load could not build it. Undo that, or keep its weights by "
            "torch.save(model.state_dict(), ...)."
        ) from None
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


@functools.lru_cache(maxsize=8)
def _expected(config: HyperSegConfig) -> dict[str, torch.Size]:
    """Return keys and shapes of the network that a configuration describes. The random state is not changed."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        return {key: value.shape for key, value in HyperSeg(config).state_dict().items()}


def warn_if_not_finite(state: dict[str, Tensor], target: Path) -> None:
    """Warn that a network with NaN or infinity is about to be written to ``target``."""
    if problems := not_finite(state):
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        warnings.warn(
            f"The network that is saved to {target} has unusable weights: {'; '.join(problems[:3])}{more}. Training "
            "has diverged; keep an earlier checkpoint. Loading this one needs hyperseg.load(..., check_finite=False).",
            stacklevel=3,
        )


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


def load_own_format(path: Path, device: str | torch.device = "cpu", finite: bool = True) -> HyperSeg:
    """Load what :func:`save` wrote: ``path`` is the folder, or the weights file in it.

    Args:
        device: where the network is put.
        finite: refuse NaN, infinity and negative variances.

    Returns:
        The network, in eval mode, on ``device``.

    Raises:
        CheckpointError: a file is missing or damaged, or the weights do not fit the configuration.
    """
    weights = path / WEIGHTS_FILE if path.is_dir() else path
    config_file = weights.parent / CONFIG_FILE
    if not weights.is_file():
        raise _missing(weights)
    # config.json before the weights: if they are replaced in between, the new ones bring their own configuration.
    try:
        readable = config_file.read_bytes()
    except OSError:
        readable = None
    state, metadata = read_safetensors(weights)
    stored = metadata.get(_CONFIG_KEY)
    text, source = (readable, str(config_file)) if stored is None else (stored, f"the metadata of {weights}")
    if text is None:
        raise _missing(config_file)
    config = _parse(text, source)
    if stored is not None and readable is not None:
        _compare(config, readable, config_file, weights)
    try:
        model = HyperSeg(config)
    except (ValueError, TypeError, AttributeError, ArithmeticError, RuntimeError, MemoryError) as error:
        raise CheckpointError(f"{source} {_UNUSABLE}: {error}") from error
    state = plain_keys(state, str(weights))
    check_state(state, {key: value.shape for key, value in model.state_dict().items()}, str(weights))
    model.load_state_dict(state)
    if finite:
        check_finite(model, str(weights))
    return model.eval().to(device)


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file, opened once: its tensors and its metadata.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error


def _missing(file: Path) -> CheckpointError:
    return CheckpointError(f"{file} does not exist; a checkpoint is a directory with {CONFIG_FILE} and {WEIGHTS_FILE}.")


def _parse(text: str | bytes, source: str) -> HyperSegConfig:
    try:
        return HyperSegConfig.from_dict(json.loads(text))
    except (ValueError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise CheckpointError(f"{source} {_UNUSABLE}: {error}") from error


def _compare(config: HyperSegConfig, readable: bytes, config_file: Path, weights: Path) -> None:
    """Warn if ``config.json`` says something else than the weights file: it was edited, or the process was killed."""
    try:
        other: dict[str, Any] = _parse(readable, str(config_file)).to_dict()
    except CheckpointError as error:
        difference = str(error)
    else:
        fields = [name for name, value in config.to_dict().items() if other[name] != value]
        if not fields:
            return
        difference = f"{config_file} has another {', '.join(fields)}"
    warnings.warn(
        f"{difference}; ignored, because the configuration that was written with the weights is in {weights.name}. To "
        "change it: model = load(...), model.config = model.config.replace(...), save(model, ...).",
        stacklevel=4,
    )
