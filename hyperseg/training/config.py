"""The configuration of a training run: frozen dataclasses, from a recipe and options, and back to YAML."""

import dataclasses
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml

from hyperseg._files import printable
from hyperseg.training.strict import ConfigError, build, read_value, read_yaml

__all__ = ["ConfigError", "TrainingConfig", "load_recipe", "recipe_names"]


def _check(condition: bool, key: str, message: str) -> None:
    if not condition:
        raise ConfigError(f"{key} {message}")


@dataclass(frozen=True)
class ModelConfig:
    """The network.

    Attributes:
        name: a published network; it gets the classes of the data set.
        encoder: another timm model; null: the published one.
        encoder_weights: ImageNet weights of the encoder: "default" (the paper's for the published encoders), "none", a
            tag of timm, a file, or "package:NAME" for weights that a Python package contains.
        init: a checkpoint to begin with, also one for other classes: what does not fit is named and keeps its random
            values. A file, a folder, or the name of a network whose weights were released.
        static_padding_size, drop_path_rate, head_dropout, signal_ranges: as in HyperSegConfig; null: as published.
            signal_ranges "disjoint" connects the whole context head to the decoder, which the v1_0 networks of the
            paper do not; the network is renamed.
        encoder_norm_momentum: of the encoder's batch norms. The published 0.01 suits 100,000 steps; a short run needs
            about 0.1.
        freeze_norms: batch norms keep their statistics.
    """

    name: str = "hyperseg-s-camvid"
    encoder: str | None = None
    encoder_weights: str = "default"
    init: str | None = None
    static_padding_size: int | None = None
    drop_path_rate: float | None = None
    head_dropout: float | None = None
    signal_ranges: Literal["overlapping", "disjoint"] | None = None
    encoder_norm_momentum: float = 0.01
    freeze_norms: bool = False

    def __post_init__(self) -> None:
        for key in ("drop_path_rate", "head_dropout"):
            rate = getattr(self, key)
            _check(rate is None or 0 <= rate < 1, key, f"is {rate}; give 0 (off) to less than 1")
        _check(0 < self.encoder_norm_momentum <= 1, "encoder_norm_momentum", "must be above 0 and at most 1")


@dataclass(frozen=True)
class DataConfig:
    """The data set and its splits.

    Attributes:
        name: as ``--data`` takes it.
        root: its folder.
        train: splits that are trained on, together.
        val: the split that the best network is chosen by; null: none.
        test: a split that is scored once, at the end; null: none.
        options: of the data set.
        workers: processes that read and augment; 0: this one.
        cache: folder with a cache per split, ``hyperseg data cache --output CACHE/SPLIT`` (SPLIT is "train+val" for
            two); a split without one is read from its files.
        order: "replacement" draws each sample from the whole set, as the official runs do; "permutation" takes every
            image once per pass.
    """

    name: str = "folder"
    root: str | None = None
    train: tuple[str, ...] = ("train",)
    val: str | None = "val"
    test: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    workers: int = 4
    cache: str | None = None
    order: Literal["replacement", "permutation"] = "permutation"

    def __post_init__(self) -> None:
        _check(bool(self.train), "train", "is empty; name at least one split")
        _check(self.workers >= 0, "workers", f"is {self.workers}; give 0 or more")


@dataclass(frozen=True)
class AugmentationConfig:
    """Random changes of a sample: scale, rotation, crop, flip, colour.

    Attributes:
        crop: (height, width) of the samples.
        scale: the range of the random scale.
        scale_probability: of a random scale; otherwise it is 1.
        rotation: degrees either way.
        flip: probability of a horizontal flip.
        jitter: of brightness, contrast, saturation and hue; 0 is off.
        place: "random": a crop at a random place, smaller images at a random place in it; "corner": no crop, smaller
            images in the top left corner.
        official: the transforms of the official code in its order, slower, to reproduce its runs.
    """

    crop: tuple[int, int] = (512, 512)
    scale: tuple[float, float] = (0.5, 2.0)
    scale_probability: float = 1.0
    rotation: float = 0.0
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    place: Literal["random", "corner"] = "random"
    official: bool = False

    def __post_init__(self) -> None:
        _check(min(self.crop) >= 32, "crop", f"is {list(self.crop)}; give at least 32 pixels each way")
        low, high = self.scale
        _check(0 < low <= high, "scale", f"is {list(self.scale)}; give the smallest and the largest scale")
        _check(not self.rotation or self.place == "corner", "rotation", "needs place: corner; a crop is not rotated")
        _check(0 <= self.rotation <= 180, "rotation", f"is {self.rotation}; give 0 to 180 degrees")
        for key in ("scale_probability", "flip"):
            _check(0 <= getattr(self, key) <= 1, key, f"is {getattr(self, key)}; a probability is 0 to 1")
        _check(min(self.jitter) >= 0 and self.jitter[3] <= 0.5, "jitter", "must be at least 0, and 0.5 at most for hue")


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimiser.

    Attributes:
        encoder_lr: factor of the encoder's learning rate.
        weight_decay: not applied to biases and norms.
        clip: largest norm of all gradients together; null: not clipped.
    """

    name: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    momentum: float = 0.9
    weight_decay: float = 0.0
    encoder_lr: float = 1.0
    clip: float | None = None

    def __post_init__(self) -> None:
        for key in ("lr", "eps"):
            _check(0 < getattr(self, key) < math.inf, key, f"is {getattr(self, key)}; give a positive number")
        for key in ("weight_decay", "encoder_lr", "momentum"):
            _check(getattr(self, key) >= 0, key, f"is {getattr(self, key)}; give 0 or more")
        _check(all(0 <= beta < 1 for beta in self.betas), "betas", f"are {list(self.betas)}; give 0 to less than 1")
        _check(self.clip is None or self.clip > 0, "clip", f"is {self.clip}; give a positive number or null")


@dataclass(frozen=True)
class ScheduleConfig:
    """Length of the run and its learning rate, ``lr * (1 - t / T) ** power``.

    Attributes:
        steps: optimiser steps; null: from epochs and samples_per_epoch, as the official recipes count.
        epochs, samples_per_epoch: an epoch is ``samples_per_epoch // batch`` steps.
        power: 0 keeps the learning rate.
        unit: what t and T count. With "epoch" the rate changes once per epoch.
        warmup: steps over which the rate rises linearly.
    """

    steps: int | None = None
    epochs: int | None = None
    samples_per_epoch: int | None = None
    power: float = 0.9
    unit: Literal["step", "epoch"] = "step"
    warmup: int = 0

    def __post_init__(self) -> None:
        for key in ("steps", "epochs", "samples_per_epoch"):
            value = getattr(self, key)
            _check(value is None or value > 0, key, f"is {value}; give a positive number")
        for key in ("power", "warmup"):
            _check(getattr(self, key) >= 0, key, f"is {getattr(self, key)}; give 0 or more")


LossKind = Literal["cross_entropy", "bootstrapped", "ohem"]


@dataclass(frozen=True)
class LossConfig:
    """The loss: one over pixels, and optionally one over regions added to it.

    Attributes:
        kind: "cross_entropy", the mean over labelled pixels; "bootstrapped", the paper's, the mean of the hard pixels
            of each image; "ohem", the mean of the hard pixels of the batch.
        class_weights: "none", "median_frequency", "sqrt_median_frequency" (both from the training labels), or one
            number per class.
        bootstrap, threshold: of the bootstrapped loss: at least so many pixels per image, and all with a larger loss.
        ohem_probability, ohem_share: of ohem: pixels whose class has a smaller probability, and at least this share.
        dice, lovasz: factors of these losses, added; 0: off.
        then, then_from: another kind from this share of the run on, without class weights.
    """

    kind: LossKind = "cross_entropy"
    class_weights: Literal["none", "median_frequency", "sqrt_median_frequency"] | tuple[float, ...] = "none"
    bootstrap: int = 4096
    threshold: float = 0.3
    ohem_probability: float = 0.7
    ohem_share: float = 0.0625
    dice: float = 0.0
    lovasz: float = 0.0
    then: LossKind | None = None
    then_from: float = 0.5

    def __post_init__(self) -> None:
        _check(self.bootstrap > 0, "bootstrap", f"is {self.bootstrap}; give a number of pixels")
        for key in ("threshold", "dice", "lovasz"):
            _check(getattr(self, key) >= 0, key, f"is {getattr(self, key)}; give 0 or more")
        for key in ("ohem_probability", "ohem_share", "then_from"):
            _check(0 < getattr(self, key) < 1, key, f"is {getattr(self, key)}; give a number between 0 and 1")
        if not isinstance(self.class_weights, str):
            _check(min(self.class_weights, default=-1) >= 0, "class_weights", "must be 0 or more for each class")


@dataclass(frozen=True)
class SpeedConfig:
    """How a step is computed.

    Attributes:
        amp: autocast to this type; "fp16" scales the loss. Losses and statistics stay in float32.
        channels_last: memory format of images and feature maps.
        compile: torch.compile of nothing, the encoder, or the whole network.
        accumulate: divide the batch of each process into so many parts, computed one after the other. Batch norms see
            one part at a time.
        lean_blocks: blocks of EfficientNet keep the outputs of their convolutions only, and compute norms and
            activations again in the backward pass. Not used with compile, which decides that itself.
        recompute: compute all of the encoder's maps again in the backward pass: less memory, and more time. Not with
            compile, which cannot trace it.
        sync_norms: with several processes, batch norms use the statistics of all.
    """

    amp: Literal["none", "bf16", "fp16"] = "none"
    channels_last: bool = True
    compile: Literal["none", "encoder", "model"] = "none"
    accumulate: int = 1
    lean_blocks: bool = True
    recompute: bool = False
    sync_norms: bool = True

    def __post_init__(self) -> None:
        _check(self.accumulate > 0, "accumulate", f"is {self.accumulate}; give 1 or more")
        together = "does not work with speed.compile; set one of them (speed.accumulate saves memory too)"
        _check(not self.recompute or self.compile == "none", "recompute", together)


@dataclass(frozen=True)
class ValidationConfig:
    """Validation during the run.

    Attributes:
        every: steps between validations; null: at the end only.
        images: so many images, evenly spaced, except at the end; null: all.
        size: (height, width) that images are brought to; null: their own. Scores are at the size of the labels.
        resize: "bilinear", or "pad" smaller ones at the bottom and on the right.
        batch: images at a time.
        pictures: images to draw with their predictions at each validation.
    """

    every: int | None = None
    images: int | None = None
    size: tuple[int, int] | None = None
    resize: Literal["bilinear", "pad"] = "bilinear"
    batch: int = 1
    pictures: int = 4

    def __post_init__(self) -> None:
        for key in ("every", "images", "batch"):
            value = getattr(self, key)
            _check(value is None or value > 0, key, f"is {value}; give a positive number")
        _check(self.pictures >= 0, "pictures", f"is {self.pictures}; give 0 or more")
        _check(min(self.size or (1, 1)) > 0, "size", f"is {list(self.size or ())}; give (height, width) in pixels")
        _check(self.resize != "pad" or self.size is not None, "resize", "is pad, which needs a size to pad to")


@dataclass(frozen=True)
class RunConfig:
    """The rest.

    Attributes:
        seed: of initial values, samples and noise.
        save_every: steps between states; keep: how many of them stay.
        log_every: steps between progress lines.
        ema: decay of the averaged weights, which are validated and saved then; null: off.
        final: "best": the network with the best validation; "last".
        deterministic: refuse operations whose result depends on the order of threads.
    """

    seed: int = 0
    save_every: int = 1000
    keep: int = 2
    log_every: int = 20
    ema: float | None = None
    final: Literal["best", "last"] = "best"
    deterministic: bool = False

    def __post_init__(self) -> None:
        _check(0 <= self.seed < 2**64, "seed", f"is {self.seed}; give 0 to 2^64 - 1")
        for key in ("save_every", "keep", "log_every"):
            _check(getattr(self, key) > 0, key, f"is {getattr(self, key)}; give 1 or more")
        _check(self.ema is None or 0 < self.ema < 1, "ema", f"is {self.ema}; give a decay such as 0.999, or null")


@dataclass(frozen=True)
class TrainingConfig:
    """A training run. ``batch`` is the number of samples per step, of all processes together."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = field(default_factory=DataConfig)
    batch: int = 16
    augmentation: AugmentationConfig = AugmentationConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    speed: SpeedConfig = SpeedConfig()
    validation: ValidationConfig = ValidationConfig()
    run: RunConfig = RunConfig()

    def __post_init__(self) -> None:
        _check(self.batch > 0, "batch", f"is {self.batch}; give 1 or more")
        schedule = self.schedule
        if schedule.steps is None:
            known = schedule.epochs is not None and schedule.samples_per_epoch is not None
            _check(known, "schedule.steps", "is missing; give it, or schedule.epochs and schedule.samples_per_epoch")
            _check(self.steps > 0, "schedule.samples_per_epoch", f"is less than one batch of {self.batch}")
        if schedule.unit == "epoch":
            _check(
                (schedule.samples_per_epoch or 0) >= self.batch, "schedule.samples_per_epoch", "is less than a batch"
            )

    @property
    def steps(self) -> int:
        """Optimiser steps of the run."""
        if self.schedule.steps is not None:
            return self.schedule.steps
        return (self.schedule.epochs or 0) * self.steps_per_epoch

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of what the recipe calls an epoch; the last part of a batch is left out."""
        return (self.schedule.samples_per_epoch or 0) // self.batch

    def to_dict(self) -> dict[str, Any]:
        """Return the values as plain data, for YAML and JSON."""
        return _plain(dataclasses.asdict(self))

    def to_yaml(self) -> str:
        """Return the whole configuration, defaults included, as a recipe."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, default_flow_style=None, allow_unicode=True)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "the configuration") -> "TrainingConfig":
        """Return the configuration of nested plain data.

        Raises:
            ConfigError: an unknown key, a value of another type or out of range; the message begins with ``source``.
        """
        return build(cls, values, source)


def recipe_names() -> list[str]:
    """Return the names of the recipes in the package."""
    folder = resources.files("hyperseg.training") / "recipes"
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def load_recipe(recipe: str | os.PathLike[str], changes: Iterable[str] = ()) -> TrainingConfig:
    """Read a recipe and change some of its values.

    Args:
        recipe: one of :func:`recipe_names`, or a YAML file.
        changes: texts such as ``"optimizer.lr=1e-4"``; the value is YAML.

    Raises:
        ConfigError: there is no such recipe, or something in it or in the changes is wrong.
    """
    name = os.fspath(recipe)
    if name in recipe_names():
        source = f"the recipe {name}"
        text = (resources.files("hyperseg.training") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
    else:
        source = printable(name)
        try:
            text = Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            known = f"there is {', '.join(recipe_names())}, or give a YAML file"
            reason = getattr(error, "strerror", None) or "it is not text"
            raise ConfigError(f"there is no recipe {source} ({reason}); {known}") from None
    values = read_yaml(text, source)
    config = TrainingConfig.from_dict(values, source)
    values, problem = config.to_dict(), None
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {change}: give KEY=VALUE, such as optimizer.lr=1e-4")
        _put(values, key.strip(), read_value(value), f"--set {key}")
        try:
            config, problem = TrainingConfig.from_dict(values, f"--set {change}"), None
        except ConfigError as error:  # unless a later change belongs to it, as validation.size to validation.resize=pad
            problem = problem or error
    if problem is not None:
        raise problem
    return config


def _put(values: dict[str, Any], key: str, value: Any, source: str) -> None:
    *sections, last = key.split(".")
    place: Any = values
    for section in sections:
        place = place.get(section) if isinstance(place, dict) else None
        if not isinstance(place, dict):
            raise ConfigError(f"{source}: there is no section {section}; the sections are {', '.join(values)}")
    place[last] = value


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value
