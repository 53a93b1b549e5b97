"""Frames of a camera and frames of a stream: the turn of a case measures both, warm again, and the machine's speed.

A camera gives one frame at a time, and every thread of the process is asleep when it arrives. A stream has the next
frame ready when one is done, so that thread pools which spin for a while after their work never go to sleep.
"""

from __future__ import annotations

import gc
import resource
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch

from bench.core.timing import (
    Budget,
    Case,
    Ratio,
    Samples,
    Summary,
    median,
    ratio,
    schedule,
    slice_steps,
    summarise,
    warm_up,
    window_slice,
    without_gc,
)

CPU = torch.device("cpu")

# A process is asleep if none of its other threads is ready to run in so many looks, so many seconds apart.
LOOKS = 3
BETWEEN_LOOKS = 0.003
LIMIT = 2.0

# Untimed frames at the begin of a camera's turn: other code ran since.
UNTIMED = 2


def wait_until_asleep(least: float, limit: float = LIMIT) -> bool:
    """Sleep for `least` seconds, then until no other thread is ready to run; return False if one is after `limit`.

    After their last work OpenMP's threads (libgomp) spin for some 4 ms, those of ONNX Runtime for some 50 ms, of CPU
    time: on a busy machine that takes longer. So it is not CPU time that tells whether a thread sleeps.
    """
    time.sleep(least)
    began = time.perf_counter()
    quiet = 0
    while quiet < LOOKS:
        if quiet == 0 and time.perf_counter() - began > limit:
            return False
        quiet = 0 if others_run() else quiet + 1
        time.sleep(BETWEEN_LOOKS)
    return True


def others_run() -> bool:
    """Return whether a thread of this process besides the calling one runs, or waits for a CPU; False if unknown."""
    mine = str(threading.get_native_id())
    for task in Path("/proc/self/task").glob("*"):
        with suppress(OSError):  # it has just ended
            # "12 (name, perhaps with spaces) S 1 ..."
            if task.name != mine and (task / "stat").read_text().rpartition(")")[2].split()[0] == "R":
                return True
    return False


@dataclass
class Usage:
    """What a frame takes besides its time, on average.

    Attributes:
        user_ms, system_ms: CPU time of all threads, also while they spin.
        page_faults: pages that the kernel mapped.
        waits: times that a thread went to sleep.
        preemptions: times that a thread lost its CPU to another program.
    """

    user_ms: float
    system_ms: float
    page_faults: float
    waits: float
    preemptions: float


class Meter:
    """Adds up what `resource.getrusage` reports of this process."""

    def __init__(self) -> None:
        self.totals = [0.0] * 5
        self.frames = 0

    @contextmanager
    def running(self, frames: int) -> Iterator[None]:
        before = self._read()
        yield
        self.totals = [t + b - a for t, a, b in zip(self.totals, before, self._read(), strict=True)]
        self.frames += frames

    @staticmethod
    def _read() -> list[float]:
        now = resource.getrusage(resource.RUSAGE_SELF)
        return [1e3 * now.ru_utime, 1e3 * now.ru_stime, now.ru_minflt, now.ru_nvcsw, now.ru_nivcsw]

    def per_frame(self) -> Usage:
        return Usage(*(total / max(1, self.frames) for total in self.totals))


@dataclass
class Turns:
    """What was measured of one case.

    Attributes:
        samples: single frames of the camera (``latency_ms``), and the stream (``window_ms``, one window per round).
        camera_ms: the camera's median, by round.
        speed: of the machine, measured at the begin of each turn.
        asleep: whether all threads were asleep before every frame of the camera.
        camera, stream: what their frames took.
    """

    samples: Samples = field(default_factory=Samples)
    camera_ms: list[float] = field(default_factory=list)
    speed: list[float] = field(default_factory=list)
    asleep: bool = True
    camera: Meter = field(default_factory=Meter)
    stream: Meter = field(default_factory=Meter)

    def camera_rates(self) -> list[float]:
        """Frames per second of the camera if its next frame came at once, by round."""
        return [1e3 / ms for ms in self.camera_ms]

    def camera_over_stream(self) -> Ratio:
        """Time of a frame of the camera over that of the stream, paired by round."""
        return ratio(self.camera_ms, self.samples.ms_per_item())


def measure_turns(
    cases: Sequence[Case],
    budget: Budget,
    speed: Callable[[], float],
    on_turn: Callable[[Case], None] = lambda case: None,
) -> list[Turns]:
    """Time all cases on the CPU in alternating turns, each with `speed` of the machine, a camera and a stream.

    Camera and stream come first in every second round: what one leaves to the other (clocks, caches) cancels.
    """
    found = [Turns() for _ in cases]
    steps = []
    for case, turns in zip(cases, found, strict=True):
        wait_until_asleep(budget.pause)
        samples = turns.samples
        samples.warmup_steps, samples.warmup_stable, seconds = warm_up(case, CPU, budget)
        steps.append(slice_steps(budget, seconds, cuda=False))
    with without_gc():
        for turn, index in enumerate(schedule(len(cases), budget.rounds)):
            if index == 0:
                gc.collect()
            case, turns, todo = cases[index], found[index], steps[index]
            wait_until_asleep(budget.pause)
            turns.speed.append(speed())
            if (turn // len(cases)) % 2:
                stream_turn(case, turns, todo.window, budget)
                camera_turn(case, turns, todo.latency, budget)
            else:
                camera_turn(case, turns, todo.latency, budget)
                stream_turn(case, turns, todo.window, budget)
            on_turn(case)
    return found


def camera_turn(case: Case, turns: Turns, frames: int, budget: Budget) -> None:
    """Time single frames, each after all threads went to sleep."""
    timed: list[float] = []
    first = len(turns.samples.latency_ms)
    with case.context():
        for i in range(UNTIMED + frames):
            asleep = wait_until_asleep(budget.pause)
            meter = turns.camera if i >= UNTIMED else Meter()
            with meter.running(1):
                ms = window_slice(case, CPU, 1, first + i)
            if i >= UNTIMED:
                timed.append(ms)
                turns.asleep &= asleep
    turns.samples.latency_ms += timed
    turns.camera_ms.append(median(timed))


def stream_turn(case: Case, turns: Turns, frames: int, budget: Budget) -> None:
    """Run frames back to back until their times have settled again, then time a window of them."""
    wait_until_asleep(budget.pause)
    samples = turns.samples
    steps, stable, _ = warm_up(case, CPU, budget)
    samples.warmup_stable &= stable
    with case.context(), turns.stream.running(frames):
        samples.window_ms.append(window_slice(case, CPU, frames, steps))
    samples.window_items.append(frames * case.items)


# Where the difference between a camera and a stream comes from


@dataclass
class Pause:
    """Frames after one kind of pause.

    Attributes:
        before: what the process does before each frame, one of `PAUSES`.
        latency_ms: of a frame.
        over_stream: time over that without a pause, paired by round.
    """

    before: str
    latency_ms: Summary
    over_stream: Ratio


def keep_calling_thread_awake(seconds: float) -> None:
    """Spin in Python: the thread pools go to sleep, the calling thread does not."""
    end = time.perf_counter() + seconds + LOOKS * BETWEEN_LOOKS
    while time.perf_counter() < end:
        pass


def wake(seconds: float) -> None:
    """Sleep, then multiply matrices for 20 ms: threads and clocks are up, and the caches hold other data."""
    wait_until_asleep(seconds)
    a = torch.ones(512, 512)
    end = time.perf_counter() + 0.02
    while time.perf_counter() < end:
        torch.mm(a, a)


NONE, CALLER, ASLEEP, WOKEN = "nothing", "calling thread awake", "all asleep", "asleep, then other work"
PAUSES: dict[str, Callable[[float], object]] = {
    NONE: lambda seconds: None,
    CALLER: keep_calling_thread_awake,
    ASLEEP: wait_until_asleep,
    WOKEN: wake,
}


def measure_pauses(case: Case, budget: Budget, frames: int) -> list[Pause]:
    """Time single frames after each kind of pause, the kinds alternating."""
    kinds = list(PAUSES)
    found: dict[str, list[list[float]]] = {kind: [] for kind in kinds}
    with without_gc(), case.context():
        for index in schedule(len(kinds), budget.rounds):
            kind = kinds[index]
            times = []
            for i in range(UNTIMED + frames):
                PAUSES[kind](budget.pause)
                times.append(window_slice(case, CPU, 1, i))
            found[kind].append(times[UNTIMED:])
    medians = {kind: [median(times) for times in rounds] for kind, rounds in found.items()}
    return [
        Pause(kind, summarise([ms for times in found[kind] for ms in times]), ratio(medians[kind], medians[NONE]))
        for kind in kinds
    ]
