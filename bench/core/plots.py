"""Plots of bench/figures.py: SVG by Matplotlib, readable on light and dark pages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.core.errors import Refused
from bench.core.timing import Summary

# Of similar lightness, and distinct for colour-blind readers (Okabe and Ito).
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#999999", "#b8a800")
INK = "#777777"


@dataclass(frozen=True)
class Bar:
    """One time in milliseconds: median, minimum and maximum."""

    group: str
    name: str
    ms: Summary


@dataclass(frozen=True)
class Stack:
    """Milliseconds that add up, by part."""

    group: str
    name: str
    parts: dict[str, float]


@dataclass(frozen=True)
class Dot:
    """A call: its milliseconds, and the percentage it reaches of the speed that bytes and FLOPs allow."""

    operator: str
    backend: str
    ms: float
    percent: float


def bars(path: Path, mark: str, found: Sequence[Bar], axis: str) -> None:
    names = list(dict.fromkeys(bar.name for bar in found))

    def draw(axes: Any) -> None:
        for y, bar in enumerate(found):
            colour = COLOURS[names.index(bar.name) % len(COLOURS)]
            middle = bar.ms.p50
            reach = [[middle - bar.ms.min], [bar.ms.max - middle]]
            axes.barh(y, middle, color=colour, xerr=reach, ecolor=INK, capsize=2)
        axes.set_xlabel(f"{axis}: median, least and most")

    rows(path, mark, [(bar.group, bar.name) for bar in found], draw)


def stacks(path: Path, mark: str, found: Sequence[Stack]) -> None:
    parts = list(dict.fromkeys(part for stack in found for part in stack.parts))

    def draw(axes: Any) -> None:
        for part, colour in zip(parts, COLOURS, strict=False):
            widths = [stack.parts.get(part, 0) for stack in found]
            before = [sum(stack.parts.get(p, 0) for p in parts[: parts.index(part)]) for stack in found]
            axes.barh(range(len(found)), widths, left=before, color=colour, label=part)
        axes.set_xlabel("ms per frame, by operator")
        legend(axes)

    rows(path, mark, [(stack.group, stack.name) for stack in found], draw)


def roofline(path: Path, mark: str, found: Sequence[Dot]) -> None:
    operators = list(dict.fromkeys(dot.operator for dot in found))
    backends = list(dict.fromkeys(dot.backend for dot in found))

    def draw(axes: Any) -> None:
        for backend, colour in zip(backends, COLOURS, strict=False):
            mine = [dot for dot in found if dot.backend == backend]
            shift = 0.15 * (backends.index(backend) - (len(backends) - 1) / 2)
            places = [operators.index(dot.operator) + shift for dot in mine]
            axes.scatter([dot.percent for dot in mine], places, s=18, color=colour, label=backend, alpha=0.8)
        axes.set_xscale("log")
        axes.axvline(100, color=INK, linewidth=1)
        axes.set_xlabel("% of the speed that the machine's measured rates allow (one dot per call)")
        axes.xaxis.set_major_formatter("{x:g}")
        legend(axes)

    rows(path, mark, [("", operator) for operator in operators], draw)


def legend(axes: Any) -> None:
    axes.figure.legend(loc="outside upper left", ncols=4, frameon=False, labelcolor=INK)


def rows(path: Path, mark: str, names: Sequence[tuple[str, str]], draw: Callable[[Any], None]) -> None:
    """Draw one row per name, from the top; a group is named at its first row."""
    try:
        import matplotlib
    except ImportError as error:
        raise Refused("Plots need Matplotlib: `pip install matplotlib`.") from error
    style: dict[Any, Any] = {
        "svg.hashsalt": "hyperseg",  # the same ids every time
        "font.size": 9,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
    }
    with matplotlib.rc_context(style):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 0.9 + 0.32 * len(names)), layout="constrained")
        axes = figure.subplots()
        draw(axes)
        before = ["", *(group for group, _ in names)]
        labels = [
            f"{group}  {name}" if group != last else name for (group, name), last in zip(names, before, strict=False)
        ]
        axes.set_yticks(range(len(names)), labels)
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, transparent=True, metadata={"Date": None, "Description": f"result {mark}"})
