"""Networks by name."""

import dataclasses
from typing import Any

from hyperseg.models.config import HyperSegConfig
from hyperseg.models.hyperseg import HyperSeg
from hyperseg.models.variants import ALIASES, VARIANTS


def list_models() -> list[str]:
    """Return the names of the published networks; ``hyperseg-s``, ``-m`` and ``-l`` are aliases of three of them."""
    return sorted(VARIANTS)


def model_config(name: str) -> HyperSegConfig:
    """Return the configuration of a published network, by name or alias.

    Raises:
        ValueError: no network has this name; the message lists the names.
    """
    name = ALIASES.get(name, name)
    if name not in VARIANTS:
        short = ", ".join(f"{alias} ({full})" for alias, full in ALIASES.items())
        raise ValueError(f"There is no network {name!r}; choose from {', '.join(list_models())}, or for short {short}.")
    return VARIANTS[name]


def create_model(
    name: str,
    num_classes: int | None = None,
    encoder: str | None = None,
    pretrained_encoder: bool = False,
    **changes: Any,
) -> HyperSeg:
    """Build a network in training mode with random weights; the encoder's can be pretrained.

    Args:
        name: one of :func:`list_models`, or ``hyperseg-s``, ``-m``, ``-l``.
        num_classes: for a data set of your own; it changes how the signal is divided between the levels.
        encoder: any timm model with features at strides 4 to 32, such as ``"resnet18"``; they are reduced to the
            channels of the published encoder.
        pretrained_encoder: load ImageNet weights through timm, which may download them.
        changes: other fields of :class:`HyperSegConfig`.

    Raises:
        ValueError: no such network or encoder, or incompatible settings.
    """
    config = model_config(name)
    fields = [field.name for field in dataclasses.fields(config)]
    if unknown := sorted(set(changes) - set(fields)):
        raise ValueError(f"create_model has no argument {', '.join(unknown)}; a configuration has {', '.join(fields)}.")
    if num_classes is not None and num_classes != config.num_classes:
        changes = {"num_classes": num_classes, "dataset": "custom"} | changes
    if encoder is not None and encoder != config.encoder:
        changes = {"encoder": encoder, "static_padding_size": None} | changes
    return HyperSeg(config.replace(**changes), pretrained_encoder)
