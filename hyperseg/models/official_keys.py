"""Key names of official checkpoints and of the official code's ImageNet files, and ours for each (SPEC I)."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from hyperseg.models import official_arch
from hyperseg.models.config import HyperSegConfig
from hyperseg.models.hyperseg import HyperSeg

_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_CONV = ("weight",)
_BIASED = ("weight", "bias")


def official_names(model: HyperSeg) -> Iterator[tuple[str, str | None]]:
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


def efficientnet_names(net: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield ``(key of the official ImageNet file, timm's key)`` of an EfficientNet without its classifier."""
    yield from _body_names(net, "", "")
    yield from _head_names("", "")


def _encoder_names(model: HyperSeg) -> Iterator[tuple[str, str]]:
    yield from _body_names(model.encoder.trunk, "backbone.", "encoder.trunk.")
    for i, reduce in enumerate(model.encoder.reduce):
        if not isinstance(reduce, nn.Identity):
            yield from _conv_norm(f"backbone._feat_fc_{i}", f"encoder.reduce.{i}")
    yield from _head_names("backbone.", "encoder.trunk.")


def _body_names(net: Any, theirs: str, own: str) -> Iterator[tuple[str, str]]:
    """Yield the keys of stem and blocks, with these prefixes."""
    yield from _each(f"{theirs}_conv_stem", f"{own}conv_stem", _CONV)
    yield from _each(f"{theirs}_bn0", f"{own}bn1", _NORM)
    number = 0
    for s, stage in enumerate(net.blocks):
        for b, block in enumerate(stage):
            official, ours = f"{theirs}_blocks.{number}", f"{own}blocks.{s}.{b}"
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


def _head_names(theirs: str, own: str) -> Iterator[tuple[str, str]]:
    yield from _each(f"{theirs}_conv_head", f"{own}conv_head", _CONV)
    yield from _each(f"{theirs}_bn1", f"{own}bn2", _NORM)


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
