"""Read and write checkpoints of the official code (SPEC A.4, I). Nothing in a file is executed or downloaded."""

import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hyperseg._files import atomic_write
from hyperseg.models import official_arch
from hyperseg.models.config import HyperSegConfig
from hyperseg.models.hyperseg import HyperSeg
from hyperseg.models.registry import model_config
from hyperseg.models.storage import CheckpointError, check_state, is_own_format
from hyperseg.ops._layout import coordinates

_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_CONV = ("weight",)
_BIASED = ("weight", "bias")


def load_official(
    path: str | os.PathLike[str], name: str | None = None, device: str | torch.device = "cpu"
) -> HyperSeg:
    """Load a ``.pth`` file of the official code; :func:`hyperseg.load` also reads the library's own format.

    Args:
        path: a file that the official trainer wrote, a released file (without optimiser), or a bare state dict.
        name: the network, for a file that does not name it (no ``arch``); see :func:`hyperseg.list_models`.
        device: where the network is put.

    Returns:
        The network, in eval mode, on ``device``.

    Raises:
        CheckpointError: the file cannot be read, contains anything but tensors and plain data, describes a network
            other than HyperSeg, or does not fit its network: missing, surplus and misshapen keys are listed by name.
        ValueError: there is no network ``name``.
    """
    path = Path(path)
    checkpoint = _read(path)
    state = checkpoint.get("state_dict", checkpoint)
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise CheckpointError(f"{path} is not a HyperSeg checkpoint: it has no state_dict of tensors.")
    config = _configuration(path, checkpoint, name)
    state = {key.removeprefix("module."): value for key, value in state.items()}
    try:
        model = HyperSeg(config)
    except (ValueError, TypeError, ArithmeticError, RuntimeError, MemoryError) as error:
        raise CheckpointError(f"{path} describes a network that cannot be built: {error}") from error
    from_official(model, state, str(path))
    return model.eval().to(device)


def save_official(model: HyperSeg, path: str | os.PathLike[str]) -> None:
    """Write a network for the official code: ``arch`` and ``state_dict``, with its key names in its order.

    Raises:
        ValueError: the official code has no such network.
        OSError: the file cannot be written.
    """
    checkpoint = {"state_dict": to_official(model), "arch": official_arch.write(model.config), "epoch": 0}
    # torch.save would write the temporary file's name into the archive.
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
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
        {name: weights[key].reshape(ours[name].shape) for key, name in _names(model) if name is not None}
    )


def to_official(model: HyperSeg) -> "OrderedDict[str, Tensor]":
    """Return the state dict with the official names, shapes and order, cached coordinates included."""
    ours = model.state_dict()
    generators = {f"decoder.generators.{i}" for i in range(len(model.decoder.generators))}
    result = OrderedDict()
    for key, name in _names(model):
        if name is None:
            height, width = map(int, key.removeprefix("decoder.coord").split("_"))
            result[key] = coordinates(height, width, like=torch.empty(0))
        else:
            result[key] = ours[name][:, :, None, None] if name in generators else ours[name]
    return result


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise CheckpointError(f"{path} does not exist.")
    if is_own_format(path):
        kind = "a directory" if path.is_dir() else "a safetensors file"
        raise CheckpointError(
            f"{path} is {kind}, not a .pth file of the official code. For either format there is hyperseg.load."
        )
    try:
        with torch.serialization.safe_globals(_NUMPY_SCALARS):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        raise CheckpointError(
            f"{path} was refused, and nothing in it was executed: "
            + (
                f"it contains more than tensors and plain data, namely {found[1]}."
                if found
                else f"it is damaged or not a PyTorch checkpoint ({_reason(error)})."
            )
        ) from error
    except Exception as error:  # a damaged file can make the unpickler raise nearly anything
        raise CheckpointError(f"{path} is damaged or not a PyTorch checkpoint ({_reason(error)}).") from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f"{path} is not a HyperSeg checkpoint: it contains a {type(checkpoint).__name__}.")
    return checkpoint


def _numpy_scalars() -> list[Any]:
    """Return the globals that a pickled NumPy scalar (``best_iou``) needs, under the names of NumPy 1 and 2."""
    core = getattr(np, "_core", None) or np.core
    scalar = core.multiarray.scalar
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    return [*((scalar, name) for name in names), np.dtype, type(np.dtype(np.float64)), type(np.dtype(np.float32))]


_NUMPY_SCALARS = _numpy_scalars()


def _reason(error: Exception) -> str:
    """Return the first line of an error, without PyTorch's advice to load the file unsafely."""
    text = str(error).split("WeightsUnpickler error:")[-1].strip()
    return text.splitlines()[0].split(". ")[0][:200] if text else type(error).__name__


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


# ---------------------------------------------------------------------------------------------------------------------
# Key names


def _names(model: HyperSeg) -> Iterator[tuple[str, str | None]]:
    """Yield ``(official key, our key)`` in the official order; our key is None for cached coordinates."""
    module = official_arch.module_of(model.config)
    yield from _encoder_names(model)
    yield from _coordinate_names(model.config)
    if module == "hyperseg_v1_0":
        yield from _decoder_v1_0(model)
        yield from _pyramid_names(model)
    elif module == "hyperseg_v1_0_unify":
        yield from _decoder_unify(model)
        yield from _pyramid_names(model)
    else:
        yield from _decoder_v0_1(model)
        yield from _unet_names(model)


def _each(official: str, ours: str, suffixes: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for suffix in suffixes:
        yield f"{official}.{suffix}", f"{ours}.{suffix}"


def _conv_norm(official: str, ours: str) -> Iterator[tuple[str, str]]:
    yield from _each(f"{official}.0", f"{ours}.conv", _CONV)
    yield from _each(f"{official}.1", f"{ours}.norm", _NORM)


def _encoder_names(model: HyperSeg) -> Iterator[tuple[str, str]]:
    yield from _each("backbone._conv_stem", "encoder.trunk.conv_stem", _CONV)
    yield from _each("backbone._bn0", "encoder.trunk.bn1", _NORM)
    number = 0
    for s, stage in enumerate(model.encoder.trunk.blocks):
        for b, block in enumerate(stage):
            official, ours = f"backbone._blocks.{number}", f"encoder.trunk.blocks.{s}.{b}"
            number += 1
            expands = hasattr(block, "conv_pwl")
            if expands:
                yield from _each(f"{official}._expand_conv", f"{ours}.conv_pw", _CONV)
                yield from _each(f"{official}._bn0", f"{ours}.bn1", _NORM)
            yield from _each(f"{official}._depthwise_conv", f"{ours}.conv_dw", _CONV)
            yield from _each(f"{official}._bn1", f"{ours}.bn2" if expands else f"{ours}.bn1", _NORM)
            yield from _each(f"{official}._se_reduce", f"{ours}.se.conv_reduce", _BIASED)
            yield from _each(f"{official}._se_expand", f"{ours}.se.conv_expand", _BIASED)
            yield from _each(f"{official}._project_conv", f"{ours}.conv_pwl" if expands else f"{ours}.conv_pw", _CONV)
            yield from _each(f"{official}._bn2", f"{ours}.bn3" if expands else f"{ours}.bn2", _NORM)
    for i, reduce in enumerate(model.encoder.reduce):
        if not isinstance(reduce, torch.nn.Identity):
            yield from _conv_norm(f"backbone._feat_fc_{i}", f"encoder.reduce.{i}")
    yield from _each("backbone._conv_head", "encoder.trunk.conv_head", _CONV)
    yield from _each("backbone._bn1", "encoder.trunk.bn2", _NORM)


def _coordinate_names(config: HyperSegConfig) -> Iterator[tuple[str, None]]:
    for height, width in official_arch.coordinate_sizes(config):
        for level in range(len(config.kernel_sizes)):
            yield f"decoder.coord{height >> level}_{width >> level}", None


def _generator(official: str, index: int) -> tuple[str, str]:
    return f"{official}.signal2weights.weight", f"decoder.generators.{index}"


def _norms(model: HyperSeg, level: int, official: list[str]) -> Iterator[tuple[str, str]]:
    for i, name in enumerate(official):
        yield from _each(name, f"decoder.levels.{level}.norms.{i}", _NORM)


def _decoder_v1_0(model: HyperSeg) -> Iterator[tuple[str, str]]:
    for i, level in enumerate(model.decoder.plan.levels):
        official = f"decoder.level_{i}.0"
        if level.hidden:
            yield from _norms(model, i, [f"{official}.bn{k}" for k in (1, 2, 3)])
            yield _generator(official, i)
        else:
            yield _generator(f"{official}.0", i)
            yield from _norms(model, i, [f"{official}.1"])


def _decoder_unify(model: HyperSeg) -> Iterator[tuple[str, str]]:
    for i, level in enumerate(model.decoder.plan.levels):
        official = f"decoder.level_blocks.{i}.0"
        names = [f"{official}.bn{k}" for k in (1, 2, 3)] if level.hidden else [f"{official}.1"]
        yield from _norms(model, i, names)
    for w in range(len(model.decoder.generators)):
        yield _generator(f"decoder.weight_blocks.{w}", w)


def _decoder_v0_1(model: HyperSeg) -> Iterator[tuple[str, str]]:
    for i, level in enumerate(model.decoder.plan.levels):
        official = f"decoder.level_{i}.0"
        names = [f"{official}.conv.{k}.1" for k in range(3)] if level.hidden else [f"{official}.1"]
        yield from _norms(model, i, names)


def _pyramid_names(model: HyperSeg) -> Iterator[tuple[str, str]]:
    for kind in ("down", "up"):
        for i in range(model.config.context_levels - 1):
            yield from _conv_norm(f"weight_mapper.{kind}_blocks.{i}", f"context.{kind}.{i}")
    yield from _conv_norm("weight_mapper.in_conv", "context.reduce")


def _unet_names(model: HyperSeg) -> Iterator[tuple[str, str]]:
    for i in range(model.config.context_levels - 1):
        for kind in ("down", "flat"):
            yield from _conv_norm(f"weight_mapper.{kind}_{i}", f"context.{kind}.{i}")
    for w in range(len(model.decoder.generators)):
        yield f"weight_mapper.out_conv.conv_{w}.weight", f"decoder.generators.{w}"
