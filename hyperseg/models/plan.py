"""The decoder's plan: shapes of all levels and signal channels of all weight generators, from a configuration."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from hyperseg.models.config import HyperSegConfig
from hyperseg.ops._layout import level_parameters


@dataclass(frozen=True)
class LevelPlan:
    """Shapes of one decoder level. ``in_channels`` is 2 coordinates + skip + previous output; ``hidden`` 0 is 1x1."""

    skip_channels: int
    previous_channels: int
    hidden: int
    out_channels: int

    @property
    def in_channels(self) -> int:
        return 2 + self.skip_channels + self.previous_channels

    @property
    def parameters(self) -> int:
        """Generated parameters per patch (SPEC E)."""
        return level_parameters(self.in_channels, self.hidden, self.out_channels)


@dataclass(frozen=True)
class GeneratorPlan:
    """Shapes of one weight generator, a grouped 1x1 convolution.

    It maps the signal channels ``offset : offset + channels`` to the parameters of ``levels``. It has ``rows`` outputs,
    a multiple of ``groups``, of which the first ``size`` are used (SPEC D.5).
    """

    levels: tuple[int, ...]
    offset: int
    channels: int
    groups: int
    rows: int
    size: int


@dataclass(frozen=True)
class DecoderPlan:
    """Shapes of a decoder that do not depend on the image size.

    Attributes:
        levels: coarse to fine.
        generators: in the order of the levels that they generate weights for.
        signal_channels: channels of the whole signal.
        used_channels: the generators read only these first channels of it.
    """

    levels: tuple[LevelPlan, ...]
    generators: tuple[GeneratorPlan, ...]
    signal_channels: int
    used_channels: int


def decoder_plan(config: HyperSegConfig) -> DecoderPlan:
    """Return the decoder's plan for a configuration.

    Raises:
        ValueError: the signal cannot be divided between the levels.
    """
    # Coarse to fine; a sixth level takes the image itself as its skip feature.
    skips = [*reversed(config.feature_channels), 3][: len(config.kernel_sizes)]
    outputs = [*config.level_channels, config.num_classes]
    levels = []
    previous = 0
    for kernel_size, skip, out in zip(config.kernel_sizes, skips, outputs, strict=True):
        hidden = round((2 + skip + previous) * config.expand_ratio) if kernel_size > 1 else 0
        levels.append(LevelPlan(skip, previous, hidden, out))
        previous = out

    first_merged = len(levels) if config.merged_from is None else config.merged_from
    shared: list[tuple[int, ...]] = [(i,) for i in range(first_merged)]
    if first_merged < len(levels):
        shared.append(tuple(range(first_merged, len(levels))))
    sizes = [sum(levels[i].parameters for i in group) for group in shared]
    if len(config.weight_groups) != len(shared):
        raise ValueError(f"{len(shared)} weight generators need as many weight_groups, got {config.weight_groups}.")

    signal_channels = config.head_channels
    widths = divide_signal(signal_channels, config.weight_groups, sizes, config.division)
    overlapping = config.signal_ranges == "overlapping"
    offsets = [0] * len(widths) if overlapping else [0, *accumulate(widths)][:-1]
    generators = tuple(
        GeneratorPlan(group, offset, width, groups, math.ceil(size / groups) * groups, size)
        for group, offset, width, groups, size in zip(shared, offsets, widths, config.weight_groups, sizes, strict=True)
    )
    used = max(g.offset + g.channels for g in generators)
    return DecoderPlan(tuple(levels), generators, signal_channels, used)


def divide_signal(channels: int, groups: Sequence[int], sizes: Sequence[int], division: str) -> list[int]:
    """Divide the signal channels between generators, roughly in proportion to their sizes (SPEC D.1, D.3).

    Args:
        channels: channels of the signal.
        groups: groups of each generator; its share is a multiple of them.
        sizes: number of parameters that each generates.
        division: ``"remainder"`` (v1_0, unify) or ``"legacy"`` (v0_1).

    Returns:
        The number of channels of each generator.

    Raises:
        ValueError: the channels do not divide into groups, or a generator would get none.
    """
    legacy = division == "legacy"
    unit = max(8, *groups) if legacy else max(groups)
    if channels % unit:
        raise ValueError(f"A signal of {channels} channels does not divide into units of {unit}, the weight groups.")
    if legacy:
        sizes = [math.ceil(n / g) * g for n, g in zip(sizes, groups, strict=True)]
    units = channels // unit
    ratio = float(units) / sum(sizes)

    counts = {size: sizes.count(size) for size in sorted(sizes)}
    order = sorted(counts, key=lambda size: size * counts[size], reverse=True)
    shares = dict.fromkeys(order, 0) if legacy else dict(counts)
    left = units - sum(shares.values())
    for size in order[:-1]:
        count = counts[size]
        target = int(max(size * count * ratio, 1 if legacy else count) // count) * count
        extra = target if legacy else min(target - count, left)
        shares[size] += extra
        left -= extra
    shares[order[-1]] += left
    widths = [shares[size] // counts[size] * unit for size in sizes]
    if min(widths) <= 0:
        raise ValueError(
            f"{channels} signal channels in units of {unit} are too few for {len(sizes)} generators of {list(sizes)} "
            "parameters; use fewer weight groups or more head channels."
        )
    return widths
