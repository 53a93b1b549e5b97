"""Networks by name."""

from typing import Any

from hyperseg.models.config import HyperSegConfig
from hyperseg.models.hyperseg import HyperSeg
from hyperseg.models.variants import ALIASES, VARIANTS


def list_models() -> list[str]:
    """The names of the published networks; ``hyperseg-s``, ``-m`` and ``-l`` are short for three of them."""
    return sorted(VARIANTS)


def model_config(name: str) -> HyperSegConfig:
    """The configuration of a published network, by name or short name.

    Raises:
        ValueError: there is none of that name; the message lists them.
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
    """Build a network, in training mode, with random weights (apart from the encoder's, if asked).

    Args:
        name: one of :func:`list_models`, or ``hyperseg-s``, ``-m``, ``-l``.
        num_classes: for a data set of your own; the division of the signal between the levels follows.
        encoder: any timm model with maps at strides 4 to 32, such as ``"resnet18"``; its features are reduced to the
            channels of the network's own encoder.
        pretrained_encoder: ImageNet weights through timm, which may download them.
        changes: other fields of :class:`HyperSegConfig`.

    Raises:
        ValueError: no such network or encoder, or settings that do not fit together.
    """
    config = model_config(name)
    if num_classes is not None and num_classes != config.num_classes:
        changes = {"num_classes": num_classes, "dataset": "custom"} | changes
    if encoder is not None and encoder != config.encoder:
        changes = {"encoder": encoder, "static_padding_size": None} | changes
    return HyperSeg(config.replace(**changes), pretrained_encoder)
