"""Configuration of a HyperSeg network."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# The files of a folder that `hyperseg.save` writes.
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


@dataclass(frozen=True)
class HyperSegConfig:
    """Configuration of one network. Features are listed fine to coarse, decoder levels coarse to fine.

    Attributes:
        name: registered name, or any other for a network of your own.
        dataset: data set of its classes: ``"cityscapes"``, ``"camvid"``, ``"voc"`` or ``"custom"``.
        num_classes: channels of the logits.
        resolution: (H, W) at which it was published and timed; it runs at any other.
        encoder: name of a timm model.
        static_padding_size: nominal image size from which the official encoder fixes its "same" padding (SPEC B.2);
            None keeps the encoder's own padding.
        feature_channels: channels of the skip features, finest (stride 2) first; 1x1 convolutions reduce the encoder's.
        head_channels: channels of the stride-32 map that the context head reads.
        context: ``"pyramid"`` (v1_0, unify) or ``"unet"`` (v0_1); SPEC C.
        context_levels: resolutions in the context head.
        kernel_sizes: kind of each level: 1 for a dynamic 1x1 convolution, 3 for a dynamic inverted residual.
        level_channels: output channels of all levels but the last, which has ``num_classes``.
        expand_ratio: hidden over input channels of the inverted residuals.
        weight_groups: groups of each weight generator.
        merged_from: first level that shares one generator with all finer ones; None if none does.
        signal_ranges: ``"disjoint"``, or ``"overlapping"``: each range starts at channel 0, as in v1_0 (SPEC D.2).
        division: how signal channels are divided: ``"remainder"`` (SPEC D.1) or ``"legacy"`` (D.3).
        halo: ``"own"`` or ``"neighbour"``, see :func:`hyperseg.ops.patch_inverted_residual`.
        drop_path_rate, head_dropout: regularisation of the encoder in training (SPEC B.1).
        mean, std: of RGB in [0, 1], to normalise images with.
        class_names: names of the classes of a data set of your own.
        encoder_weights: a record of the pretrained weights that the encoder began with, such as
            ``"tf_efficientnet_b1.aa_in1k"``, or a file's name and checksum; None if there were none. Nothing is loaded
            by it.
    """

    name: str
    dataset: str
    num_classes: int
    resolution: tuple[int, int]
    encoder: str
    feature_channels: tuple[int, ...]
    head_channels: int
    context: str
    context_levels: int
    kernel_sizes: tuple[int, ...]
    level_channels: tuple[int, ...]
    weight_groups: tuple[int, ...]
    signal_ranges: str
    division: str
    halo: str
    expand_ratio: float = 2
    merged_from: int | None = None
    static_padding_size: int | None = None
    drop_path_rate: float = 0.2
    head_dropout: float = 0.2
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    class_names: tuple[str, ...] | None = None
    encoder_weights: str | None = None

    def __post_init__(self):
        for field in ("mean", "std"):
            object.__setattr__(self, field, _channels(field, getattr(self, field)))
        if self.class_names is not None:
            object.__setattr__(self, "class_names", tuple(self.class_names))  # a list would not be hashable
        for field in _COUNTS:
            value, several = getattr(self, field), field in _SEQUENCES
            counts = value if several else (value,)
            if not (
                isinstance(counts, tuple) and all(isinstance(count, int) and 1 <= count <= _LARGEST for count in counts)
            ):
                kind = "a tuple of integers" if several else "an integer"
                raise ValueError(f"{field} must be {kind} from 1 to {_LARGEST}, got {value!r:.100}.")
        if self.context_levels > _MOST_CONTEXT_LEVELS:
            raise ValueError(f"context_levels must be at most {_MOST_CONTEXT_LEVELS}, got {self.context_levels}.")
        if not isinstance(self.expand_ratio, int | float) or not 0 < self.expand_ratio <= _MOST_EXPANSION:
            raise ValueError(f"expand_ratio must be a number up to {_MOST_EXPANSION}, got {self.expand_ratio!r:.100}.")
        for field, choices in _CHOICES.items():
            if getattr(self, field) not in choices:
                raise ValueError(f"{field} must be one of {', '.join(choices)}, got {getattr(self, field)!r}.")
        if len(self.level_channels) != len(self.kernel_sizes) - 1:
            raise ValueError(
                f"{len(self.kernel_sizes)} levels need {len(self.kernel_sizes) - 1} level_channels (the last level "
                f"gives the classes), got {len(self.level_channels)}."
            )
        if any(k not in (1, 3) for k in self.kernel_sizes):
            raise ValueError(f"kernel_sizes can be 1 or 3, got {self.kernel_sizes}.")
        if not 5 <= len(self.kernel_sizes) <= 6 or len(self.feature_channels) != 5:
            raise ValueError("A network has five skip features and five or six levels.")
        if self.encoder_weights is not None and not isinstance(self.encoder_weights, str):
            raise ValueError(f"encoder_weights must be a text or None, got {self.encoder_weights!r:.100}.")
        if self.class_names is not None and len(self.class_names) != self.num_classes:
            raise ValueError(f"{len(self.class_names)} class names were given for {self.num_classes} classes.")

    def padded_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the smallest (H, W) that the network takes without padding and that is at least ``size``.

        Five convolutions of the encoder have stride 2, so multiples of 32 fit. With the official static padding a
        network that ends at half resolution also takes one pixel more, as the official code does (SPEC C.3).
        """
        one_more = self.static_padding_size is not None and len(self.kernel_sizes) == 5
        height, width = (
            side if one_more and side > _STRIDE and side % _STRIDE == 1 else -(-side // _STRIDE) * _STRIDE
            for side in size
        )
        return height, width

    def replace(self, **changes: Any) -> "HyperSegConfig":
        """Return a copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "HyperSegConfig":
        """Return the configuration of a dictionary from :meth:`to_dict`, also after a round trip through JSON.

        Raises:
            ValueError: a field is missing, unknown or invalid; the message names it.
        """
        fields = {f.name: f for f in dataclasses.fields(cls)}
        unknown = sorted(set(values) - set(fields))
        missing = sorted(n for n, f in fields.items() if n not in values and f.default is dataclasses.MISSING)
        if unknown or missing:
            raise ValueError(f"Not a HyperSeg configuration: missing fields {missing}, unknown fields {unknown}.")
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def _channels(field: str, values: Sequence[float]) -> tuple[float, float, float]:
    """Return mean or std as three floats; arrays and tensors are accepted too."""
    try:
        red, green, blue = (float(value) for value in values)
    except (TypeError, ValueError):
        raise ValueError(f"{field} must be three numbers (red, green, blue), got {values!r:.100}.") from None
    usable = all(math.isfinite(value) and (value > 0 or field == "mean") for value in (red, green, blue))
    if not usable:
        raise ValueError(f"{field} must be finite{' and positive' if field == 'std' else ''}, got {values!r:.100}.")
    return red, green, blue


_STRIDE = 32  # of the encoder's coarsest feature
_SEQUENCES = ("resolution", "feature_channels", "kernel_sizes", "level_channels", "weight_groups")
_COUNTS = ("num_classes", "head_channels", "context_levels", *_SEQUENCES)
# Upper bounds, so that a configuration read from a file cannot allocate unbounded memory.
_LARGEST, _MOST_CONTEXT_LEVELS, _MOST_EXPANSION = 65536, 8, 64
_CHOICES = {
    "context": ("pyramid", "unet"),
    "signal_ranges": ("overlapping", "disjoint"),
    "division": ("remainder", "legacy"),
    "halo": ("own", "neighbour"),
}
