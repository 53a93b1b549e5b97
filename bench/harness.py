"""Timing: warm-up, alternation, statistics. It knows nothing about HyperSeg, so every script in bench/ can use it."""

from __future__ import annotations

import gc
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch


def quantile(values: Sequence[float], q: float) -> float:
    """The q-quantile with linear interpolation between the two nearest samples (NumPy's default)."""
    if not values:
        raise ValueError("no samples")
    ordered = sorted(values)
    position = q * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def median(values: Sequence[float]) -> float:
    return quantile(values, 0.5)


def summarise(values: Sequence[float]) -> dict[str, float]:
    """Count, extremes, mean, sample standard deviation and the percentiles a latency is judged by."""
    n = len(values)
    mean = math.fsum(values) / n
    variance = math.fsum((v - mean) ** 2 for v in values) / (n - 1) if n > 1 else 0.0
    return {
        "n": n,
        "min": min(values),
        "max": max(values),
        "mean": mean,
        "std": math.sqrt(variance),
        "p50": quantile(values, 0.5),
        "p90": quantile(values, 0.9),
        "p99": quantile(values, 0.99),
    }


def schedule(cases: int, rounds: int) -> list[int]:
    """A B C A B C ...: no case ever runs as one block, so a drift of the machine falls on all of them alike."""
    return [case for _ in range(rounds) for case in range(cases)]


@dataclass
class Case:
    """One thing to time. `step(i)` runs one batch on the i-th rotated input and returns its output."""

    name: tuple[str, ...]
    step: Callable[[int], object]
    images: int = 1
    context: Callable[[], AbstractContextManager] = nullcontext


@dataclass
class Samples:
    """Every raw sample of a case. `device_ms` comes from CUDA events and stays empty on a CPU."""

    latency_ms: list[float] = field(default_factory=list)
    device_ms: list[float] = field(default_factory=list)
    window_images: list[int] = field(default_factory=list)
    window_ms: list[float] = field(default_factory=list)
    warmup_steps: int = 0
    warmup_stable: bool = False

    def fps(self) -> list[float]:
        return [1e3 * n / ms for n, ms in zip(self.window_images, self.window_ms, strict=True)]


@dataclass(frozen=True)
class Budget:
    """How long to measure one case: `seconds`, or `iterations` latency samples and as many frames in flight.

    `most` caps the steps of a slice. `pause` is a rest before each slice: thread pools that spin when they have nothing
    to do fall asleep in it, so that none of them takes a core from the next case.
    """

    seconds: float
    rounds: int
    iterations: int | None = None
    warmup_steps: int = 3
    warmup_seconds: float = 1.0
    most: int | None = None
    pause: float = 0.0


@dataclass(frozen=True)
class Plan:
    """What one case does in one round."""

    latency: int
    events: int
    window: int


def plan(budget: Budget, step_seconds: float, cuda: bool) -> Plan:
    """Half of a case's time goes to latency (wall clock and events apart), half to frames in flight."""
    if budget.iterations is not None:
        n = max(1, math.ceil(budget.iterations / budget.rounds))
        return Plan(latency=n, events=n if cuda else 0, window=n)
    slot = budget.seconds / budget.rounds / max(step_seconds, 1e-7) / 4
    single, double = (min(max(1, round(n)), budget.most or sys.maxsize) for n in (slot, 2 * slot))
    return Plan(latency=single if cuda else double, events=single if cuda else 0, window=double)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Python's garbage collector out of the samples; `measure` runs it between rounds instead."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def warm_up(case: Case, device: torch.device, budget: Budget, tolerance: float = 0.05) -> tuple[int, bool, float]:
    """Run until two neighbouring groups of steps agree within `tolerance`, or time is up: steps, stable, seconds/step.

    At least `budget.warmup_steps` steps run whatever they cost: the first ones build plans, caches and graphs.
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
    """Milliseconds of n single steps, the device idle before and after each."""
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
    """The same steps seen by the device: milliseconds between two CUDA events around each."""
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
    """Milliseconds of n steps issued back to back, synchronised once at the end."""
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
    plans = []
    for case, samples in zip(cases, results, strict=True):
        samples.warmup_steps, samples.warmup_stable, seconds = warm_up(case, device, budget)
        plans.append(plan(budget, seconds, cuda))
    with quiet():
        for turn, index in enumerate(schedule(len(cases), budget.rounds)):
            if index == 0:
                gc.collect()
            case, samples, todo = cases[index], results[index], plans[index]
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
                samples.window_images.append(todo.window * case.images)
            on_slice(case)
            if index == len(cases) - 1:
                on_round(turn // len(cases) + 1)
    return results
