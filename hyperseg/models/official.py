"""Read and write checkpoints of the official code (SPEC A.4, I). Nothing in a file is executed or downloaded."""

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hyperseg._files import atomic_writes
from hyperseg.models import official_arch
from hyperseg.models.config import HyperSegConfig
from hyperseg.models.errors import CheckpointError
from hyperseg.models.hyperseg import HyperSeg
from hyperseg.models.official_keys import official_names
from hyperseg.models.pickles import read_pickle
from hyperseg.models.state import check_finite as refuse_not_finite
from hyperseg.models.state import check_state, checkpoint_path, plain_keys
from hyperseg.models.storage import is_own_format, plain_state, warn_if_not_finite
from hyperseg.models.variants import model_config
from hyperseg.models.wrappers import unwrap
from hyperseg.ops._layout import coordinates


def load_official(
    path: str | os.PathLike[str],
    name: str | None = None,
    device: str | torch.device = "cpu",
    check_finite: bool = True,
) -> HyperSeg:
    """Load a ``.pth`` file of the official code; :func:`hyperseg.load` also reads the library's own format.

    Args:
        path: a file that the official trainer wrote, a released file (without optimiser), or a bare state dict; also of
            a network in DataParallel, DistributedDataParallel, AveragedModel or torch.compile.
        name: the network, for a file that does not name it (no ``arch``); see :func:`hyperseg.list_models`.
        device: where the network is put.
        check_finite: refuse NaN, infinity and negative variances; False loads them too, to inspect a diverged run.

    Returns:
        The network, in eval mode, on ``device``.

    Raises:
        CheckpointError: the file cannot be read, contains anything but tensors and plain data, describes a network
            other than HyperSeg, or does not fit its network: missing, surplus and misshapen keys are listed by name.
        ValueError: there is no network ``name``.
    """
    path = checkpoint_path(path)
    if path.exists() and is_own_format(path):
        kind = "a directory" if path.is_dir() else "a safetensors file"
        raise CheckpointError(
            f"{path} is {kind}, not a .pth file of the official code. For either format there is hyperseg.load."
        )
    checkpoint = read_pickle(path)
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f"{path} is not a HyperSeg checkpoint: it contains a {type(checkpoint).__name__}.")
    state = checkpoint.get("state_dict", checkpoint)
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise CheckpointError(f"{path} is not a HyperSeg checkpoint: it has no state_dict of tensors.")
    config = _configuration(path, checkpoint, name)
    state = plain_keys(state, str(path))
    try:
        model = HyperSeg(config)
    except (ValueError, TypeError, ArithmeticError, RuntimeError, MemoryError) as error:
        raise CheckpointError(f"{path} describes a network that cannot be built: {error}") from error
    from_official(model, state, str(path))
    if check_finite:
        refuse_not_finite(model, str(path))
    return model.eval().to(device)


def save_official(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a network for the official code: ``arch`` and ``state_dict``, with its key names in its order.

    If anything fails, the file stays as it was. A network with NaN or infinity is written, with a warning.

    Args:
        model: the network, also inside the wrappers of :func:`hyperseg.save`.
        path: the file; its folder is created if it is missing.

    Raises:
        TypeError: there is not exactly one network in ``model``.
        ValueError: the official code has no such network, or the network is not the one of its configuration.
        OSError: the file cannot be written.
    """
    path = checkpoint_path(path)
    network = unwrap(model)
    arch = official_arch.write(network.config)
    state = plain_state(network)
    warn_if_not_finite(state, path)
    checkpoint = {"state_dict": _official_state(network, state), "arch": arch, "epoch": 0}
    # torch.save would write the temporary file's name into the archive.
    with atomic_writes([path], durable=True) as (temporary,), open(temporary, "wb") as file:
        torch.save(checkpoint, file)


def from_official(model: HyperSeg, state: dict[str, Tensor], source: str = "the state_dict") -> None:
    """Load an official state dict into ``model``; messages name ``source``.

    Raises:
        CheckpointError: keys or shapes are not the network's, or its cached coordinates are not coordinates.
    """
    expected = OrderedDict((key, value.shape) for key, value in to_official(model).items())
    # The cached coordinates (SPEC F) are constants, and the file may have them for any sizes.
    cached = {key: value for key, value in state.items() if key.startswith("decoder.coord")}
    weights = {key: value for key, value in state.items() if key not in cached}
    check_state(weights, {k: v for k, v in expected.items() if not k.startswith("decoder.coord")}, source)
    for key, value in cached.items():
        truth = coordinates(value.shape[-2], value.shape[-1], like=value) if value.dim() == 4 else value[..., None]
        if value.shape != truth.shape or not torch.allclose(value, truth, atol=1e-5):
            raise CheckpointError(
                f"{source}: {key} does not contain coordinates from -1 to 1; the output would differ."
            )
    ours = model.state_dict()
    model.load_state_dict(
        {name: weights[key].reshape(ours[name].shape) for key, name in official_names(model) if name is not None}
    )


def to_official(model: HyperSeg) -> "OrderedDict[str, Tensor]":
    """Return the state dict with the official names, shapes and order, cached coordinates included."""
    return _official_state(model, model.state_dict())


def _official_state(model: HyperSeg, ours: dict[str, Tensor]) -> "OrderedDict[str, Tensor]":
    """Return ``ours``, a state dict of the model, with the official names, shapes and order."""
    generators = {f"decoder.generators.{i}" for i in range(len(model.decoder.generators))}
    result = OrderedDict()
    for key, name in official_names(model):
        if name is None:
            height, width = map(int, key.removeprefix("decoder.coord").split("_"))
            result[key] = coordinates(height, width, like=torch.empty(0))
        else:
            result[key] = ours[name][:, :, None, None] if name in generators else ours[name]
    return result


def _configuration(path: Path, checkpoint: dict[str, Any], name: str | None) -> HyperSegConfig:
    if name is not None:
        return model_config(name)
    arch = checkpoint.get("arch")
    if not isinstance(arch, str):
        raise CheckpointError(
            f"{path} does not say which network it is (no arch); give its name (load(path, name=...), or --model)."
        )
    try:
        return official_arch.parse(arch)
    except ValueError as error:
        raise CheckpointError(f"{path} was refused, and nothing in it was executed: {error}.") from error
