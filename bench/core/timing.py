"""Timing: warm-up, alternation, samples, statistics. Nothing here depends on what is timed."""

from __future__ import annotations

import gc
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from hyperseg.runtime.graphs import capture

T = TypeVar("T")


def quantile(values: Sequence[float], q: float) -> float:
    """Return the q-quantile, interpolated linearly between the two nearest samples (NumPy's default)."""
    if not values:
        raise ValueError("no samples")
    ordered = sorted(values)
    position = q * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def median(values: Sequence[float]) -> float:
    return quantile(values, 0.5)


@dataclass(frozen=True)
class Summary:
    """Statistics of ``n`` samples, in the unit of the samples; ``std`` is the sample standard deviation."""

    n: int
    min: float
    max: float
    mean: float
    std: float
    p50: float
    p90: float
    p99: float


def summarise(values: Sequence[float]) -> Summary:
    n = len(values)
    mean = math.fsum(values) / n
    variance = math.fsum((v - mean) ** 2 for v in values) / (n - 1) if n > 1 else 0.0
    p50, p90, p99 = (quantile(values, q) for q in (0.5, 0.9, 0.99))
    return Summary(n, min(values), max(values), mean, math.sqrt(variance), p50, p90, p99)


@dataclass(frozen=True)
class Ratio:
    """Rates of one case relative to those of another, paired by round: a drift of the machine cancels."""

    median: float
    min: float
    max: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.min:.2f} to {self.max:.2f})"


def ratio(rates: Sequence[float], base: Sequence[float]) -> Ratio:
    ratios = [a / b for a, b in zip(rates, base, strict=True)]
    return Ratio(median(ratios), min(ratios), max(ratios))


def schedule(cases: int, rounds: int) -> list[int]:
    """Return the order A B C A B C ...: cases alternate, so that a drift of the machine affects all of them alike."""
    return [case for _ in range(rounds) for case in range(cases)]


@dataclass
class Case:
    """One thing to time.

    Attributes:
        name: for messages and rows.
        step: ``step(i)`` runs once on the i-th of the rotating inputs and returns its output.
        items: images per step, or operator calls per step.
        context: entered around every slice of steps.
    """

    name: tuple[str, ...]
    step: Callable[[int], object]
    items: int = 1
    context: Callable[[], AbstractContextManager[object]] = nullcontext


@dataclass
class Samples:
    """All raw samples of a case.

    Attributes:
        latency_ms: wall time of single steps, synchronised before and after, in milliseconds.
        device_ms: the same between two CUDA events; empty on a CPU.
        window_items, window_ms: items and milliseconds of each window, one window per round: steps issued back to back
            and synchronised once at the end.
        warmup_steps: steps before the first sample.
        warmup_stable: whether step times had settled by then.
    """

    latency_ms: list[float] = field(default_factory=list)
    device_ms: list[float] = field(default_factory=list)
    window_items: list[int] = field(default_factory=list)
    window_ms: list[float] = field(default_factory=list)
    warmup_steps: int = 0
    warmup_stable: bool = False

    def rates(self) -> list[float]:
        """Items per second, by window."""
        return [1e3 * n / ms for n, ms in zip(self.window_items, self.window_ms, strict=True)]

    def ms_per_item(self) -> list[float]:
        """Milliseconds per item, by window."""
        return [ms / n for n, ms in zip(self.window_items, self.window_ms, strict=True)]


@dataclass(frozen=True)
class Throughput:
    """Items per second over the windows: ``rate`` is the median, ``spread_percent`` is 100 (max - min) / median."""

    rate: float
    min: float
    max: float
    spread_percent: float
    by_window: list[float]


def throughput(samples: Samples) -> Throughput:
    rates = samples.rates()
    middle, low, high = median(rates), min(rates), max(rates)
    return Throughput(middle, low, high, 100 * (high - low) / middle, rates)


@dataclass(frozen=True)
class Budget:
    """How long to measure one case.

    Attributes:
        seconds: measuring time, unless ``iterations`` is given.
        rounds: alternating turns that each case gets.
        iterations: latency samples of a case, and as many steps in windows.
        warmup_steps, warmup_seconds: the least number of steps before the first sample, and the time limit for more.
        most: largest number of steps per slice.
        pause: seconds of sleep before each slice. Thread pools that spin when idle go to sleep in it, so that none of
            them occupies a core during the next case.
    """

    seconds: float
    rounds: int
    iterations: int | None = None
    warmup_steps: int = 3
    warmup_seconds: float = 1.0
    most: int | None = None
    pause: float = 0.0


@dataclass(frozen=True)
class SliceSteps:
    """Steps of one case in one round: for latency, between events, and in the window."""

    latency: int
    events: int
    window: int


def slice_steps(budget: Budget, step_seconds: float, cuda: bool) -> SliceSteps:
    """Give half of a case's time to latency (wall clock and events separately), half to the window."""
    if budget.iterations is not None:
        n = max(1, math.ceil(budget.iterations / budget.rounds))
        return SliceSteps(latency=n, events=n if cuda else 0, window=n)
    slot = budget.seconds / budget.rounds / max(step_seconds, 1e-7) / 4
    single, double = (min(max(1, round(n)), budget.most or sys.maxsize) for n in (slot, 2 * slot))
    return SliceSteps(latency=single if cuda else double, events=single if cuda else 0, window=double)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def without_gc() -> Iterator[None]:
    """Keep Python's garbage collector out of the samples; `measure` runs it between rounds instead."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def warm_up(case: Case, device: torch.device, budget: Budget, tolerance: float = 0.05) -> tuple[int, bool, float]:
    """Run until two consecutive groups of steps agree within `tolerance`, or time is up.

    At least `budget.warmup_steps` steps run, whatever they cost: the first ones build plans, caches and graphs.

    Returns:
        Number of steps, whether they settled, seconds per step.
    """
    group = max(2, budget.warmup_steps // 4)
    times: list[float] = []
    stable = False
    began = time.perf_counter()
    with case.context():
        while True:
            synchronize(device)
            start = time.perf_counter()
            case.step(len(times))
            synchronize(device)
            times.append(time.perf_counter() - start)
            if len(times) < budget.warmup_steps:
                continue
            if len(times) >= 2 * group:
                before, after = median(times[-2 * group : -group]), median(times[-group:])
                stable = abs(after - before) <= tolerance * before
            if stable or time.perf_counter() - began > budget.warmup_seconds:
                return len(times), stable, median(times[-group:])


def latency_slice(case: Case, device: torch.device, n: int, first: int) -> list[float]:
    """Return the milliseconds of n single steps, the device idle before and after each."""
    out = []
    clock = time.perf_counter_ns
    for i in range(first, first + n):
        synchronize(device)
        start = clock()
        case.step(i)
        synchronize(device)
        out.append((clock() - start) / 1e6)
    return out


def event_slice(case: Case, device: torch.device, n: int, first: int) -> list[float]:
    """Return the milliseconds of n single steps between two CUDA events around each."""
    out = []
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    for i in range(first, first + n):
        torch.cuda.synchronize(device)
        start.record()
        case.step(i)
        stop.record()
        torch.cuda.synchronize(device)
        out.append(start.elapsed_time(stop))
    return out


def window_slice(case: Case, device: torch.device, n: int, first: int) -> float:
    """Return the milliseconds of n steps issued back to back and synchronised once at the end."""
    synchronize(device)
    start = time.perf_counter_ns()
    for i in range(first, first + n):
        case.step(i)
    synchronize(device)
    return (time.perf_counter_ns() - start) / 1e6


def measure(
    cases: Sequence[Case],
    device: torch.device,
    budget: Budget,
    on_slice: Callable[[Case], None] = lambda case: None,
    on_round: Callable[[int], None] = lambda done: None,
) -> list[Samples]:
    """Warm every case up, then time all of them in alternating rounds. Hooks run between slices, never inside one."""
    cuda = device.type == "cuda"
    results = [Samples() for _ in cases]
    steps = []
    for case, samples in zip(cases, results, strict=True):
        samples.warmup_steps, samples.warmup_stable, seconds = warm_up(case, device, budget)
        steps.append(slice_steps(budget, seconds, cuda))
    with without_gc():
        for turn, index in enumerate(schedule(len(cases), budget.rounds)):
            if index == 0:
                gc.collect()
            case, samples, todo = cases[index], results[index], steps[index]
            first = len(samples.latency_ms)
            if budget.pause:
                time.sleep(budget.pause)
            with case.context():
                if cuda or budget.pause:
                    # Another case ran since: bring this one's code and weights back before the first sample.
                    window_slice(case, device, 2 if cuda else 1, first)
                samples.latency_ms += latency_slice(case, device, todo.latency, first)
                samples.device_ms += event_slice(case, device, todo.events, first)
                samples.window_ms.append(window_slice(case, device, todo.window, first))
                samples.window_items.append(todo.window * case.items)
            on_slice(case)
            if index == len(cases) - 1:
                on_round(turn // len(cases) + 1)
    return results


def captured(run: Callable[[], T], device: torch.device, calls: int) -> Callable[[int], T]:
    """Return a step of `calls` calls, on a GPU replayed as one CUDA graph, so that the device is timed, not the host.

    The step returns the output of the last call. On a GPU the next step overwrites that output.
    """
    if device.type != "cuda":
        return lambda i: [run() for _ in range(calls)][-1]
    graph, output = capture(run, device, calls)

    def step(i: int) -> T:
        graph.replay()
        return output

    return step
