"""From a configuration to the decoder's plan: the shape of every level and the signal channels of every generator."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from hyperseg.models.config import HyperSegConfig
from hyperseg.ops._layout import level_parameters


@dataclass(frozen=True)
class Level:
    """One decoder level. ``in_channels`` = 2 coordinates + skip + previous output; ``hidden`` 0 is a 1x1 level."""

    skip_channels: int
    previous_channels: int
    hidden: int
    out_channels: int

    @property
    def in_channels(self) -> int:
        return 2 + self.skip_channels + self.previous_channels

    @property
    def parameters(self) -> int:
        """Generated parameters a patch (SPEC E)."""
        return level_parameters(self.in_channels, self.hidden, self.out_channels)


@dataclass(frozen=True)
class Generator:
    """One grouped 1x1 convolution: signal channels ``offset : offset + channels`` -> parameters of ``levels``.

    It has ``rows`` outputs, a multiple of ``groups``, of which the first ``size`` are used (SPEC D.5).
    """

    levels: tuple[int, ...]
    offset: int
    channels: int
    groups: int
    rows: int
    size: int


@dataclass(frozen=True)
class Plan:
    """Everything about the decoder that does not depend on the image size."""

    levels: tuple[Level, ...]
    generators: tuple[Generator, ...]
    signal_channels: int  # of the whole signal
    used_channels: int  # the generators read none beyond these


def decoder_plan(config: HyperSegConfig) -> Plan:
    """The plan of a configuration.

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
        levels.append(Level(skip, previous, hidden, out))
        previous = out

    first_merged = len(levels) if config.merged_from is None else config.merged_from
    served: list[tuple[int, ...]] = [(i,) for i in range(first_merged)]
    if first_merged < len(levels):
        served.append(tuple(range(first_merged, len(levels))))
    sizes = [sum(levels[i].parameters for i in group) for group in served]
    if len(config.weight_groups) != len(served):
        raise ValueError(f"{len(served)} weight generators need as many weight_groups, got {config.weight_groups}.")

    signal_channels = config.head_channels
    widths = divide_signal(signal_channels, config.weight_groups, sizes, config.division)
    overlapping = config.signal_ranges == "overlapping"
    offsets = [0] * len(widths) if overlapping else [0, *accumulate(widths)][:-1]
    generators = tuple(
        Generator(group, offset, width, groups, math.ceil(size / groups) * groups, size)
        for group, offset, width, groups, size in zip(served, offsets, widths, config.weight_groups, sizes, strict=True)
    )
    used = max(g.offset + g.channels for g in generators)
    return Plan(tuple(levels), generators, signal_channels, used)


def divide_signal(channels: int, groups: Sequence[int], sizes: Sequence[int], division: str) -> list[int]:
    """Share signal channels out between generators, about in proportion to their sizes (SPEC D.1, D.3).

    Args:
        channels: of the signal.
        groups: of each generator; each gets a multiple of them.
        sizes: parameters that each generates.
        division: ``"remainder"`` (v1_0, unify) or ``"legacy"`` (v0_1).

    Returns:
        The channels of each generator.

    Raises:
        ValueError: the channels do not divide, or too few are left for one of them.
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
        wanted = int(max(size * count * ratio, 1 if legacy else count) // count) * count
        extra = wanted if legacy else min(wanted - count, left)
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
