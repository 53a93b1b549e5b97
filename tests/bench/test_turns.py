"""Turns: order, pauses, untimed frames and statistics of a camera and a stream, with a clock that no machine slows."""

import itertools
import mmap
import threading

import pytest

from bench.core import turns
from bench.core.timing import Budget, Case, Ratio
from bench.core.turns import Meter, Turns, Usage, measure_pauses, measure_turns

BUDGET = Budget(1, 2, iterations=4, warmup_steps=2, warmup_seconds=0, pause=0.5)


@pytest.fixture
def log(monkeypatch):
    """What happens, in order; nothing sleeps."""
    events: list[str] = []

    def asleep(least, limit=0):
        events.append("asleep")
        return True

    monkeypatch.setattr(turns, "wait_until_asleep", asleep)
    return events


def recorded(log, name="a"):
    return Case((name,), lambda i: log.append(name))


def test_a_turn_has_a_camera_and_a_stream(log):
    measured = measure_turns([recorded(log)], BUDGET, lambda: log.append("speed") or 7.0)
    (found,) = measured
    first = log.index("speed")
    camera = ["asleep", "a"] * (turns.UNTIMED + 2)
    # The stream settles again, which takes two steps at least, then has a window of two.
    spent = found.samples.warmup_steps
    assert log[:first] == ["asleep", *["a"] * spent, "asleep"]
    rest = log[first + 1 :]
    assert rest[: len(camera)] == camera
    second = rest.index("speed")
    stream = rest[len(camera) : second - 1]
    assert stream[0] == "asleep"
    assert set(stream[1:]) == {"a"}
    assert len(stream) >= 1 + 2 + 2
    assert rest[second + 1 : second + 3] == ["asleep", "a"], "in the second round the stream is first"
    assert rest[-len(camera) :] == camera
    assert found.speed == [7.0, 7.0]
    assert len(found.samples.latency_ms) == 4
    assert len(found.camera_ms) == len(found.samples.window_ms) == 2
    assert found.samples.window_items == [2, 2]
    assert found.asleep


def test_cases_alternate(log):
    done = []
    found = measure_turns([recorded(log, "a"), recorded(log, "b")], BUDGET, lambda: 1.0, lambda case: done.append(case))
    assert [case.name for case in done] == [("a",), ("b",)] * 2
    names = [name for name, _ in itertools.groupby(event for event in log if event in {"a", "b"})]
    assert names == ["a", "b"] * 3  # the warm-up and two rounds
    assert all(len(one.samples.latency_ms) == 4 for one in found)


def test_threads_that_do_not_sleep_are_reported(monkeypatch):
    monkeypatch.setattr(turns, "wait_until_asleep", lambda least: False)
    (found,) = measure_turns([Case(("a",), lambda i: None)], BUDGET, lambda: 1.0)
    assert not found.asleep


class Clock:
    """Time that passes only while something sleeps."""

    def __init__(self):
        self.now = 0.0

    def sleep(self, seconds):
        self.now += seconds

    def perf_counter(self):
        return self.now


@pytest.mark.parametrize(("busy", "slept"), [(0.0, 0.059), (0.05, 0.059), (0.08, 0.09), (9.0, 1.05)])
def test_it_sleeps_until_no_thread_spins(monkeypatch, busy, slept):
    clock = Clock()
    monkeypatch.setattr(turns, "time", clock)
    monkeypatch.setattr(turns, "others_run", lambda: clock.now < busy)
    assert turns.wait_until_asleep(0.05, limit=1.0) == (busy < 1)
    assert clock.now == pytest.approx(slept, abs=0.005)


def test_a_thread_that_wakes_between_looks_is_seen(monkeypatch):
    clock, looks = Clock(), iter([False, False, True, False, False, False])
    monkeypatch.setattr(turns, "time", clock)
    monkeypatch.setattr(turns, "others_run", lambda: next(looks))
    assert turns.wait_until_asleep(0.05)
    assert list(looks) == []


def test_a_thread_that_spins_is_ready_to_run():
    stop = threading.Event()

    def spin():
        while not stop.is_set():
            pass

    thread = threading.Thread(target=spin)
    thread.start()
    try:
        # Python's lock passes between the two threads: the other one may sleep at a single look.
        assert any(turns.others_run() for _ in range(1000))
    finally:
        stop.set()
        thread.join()


def test_ratios_are_paired_by_round():
    found = Turns(camera_ms=[30.0, 11.0, 24.0])
    found.samples.window_items, found.samples.window_ms = [2, 2, 2], [40.0, 20.0, 40.0]
    assert found.camera_over_stream() == Ratio(1.2, 1.1, 1.5)
    assert found.camera_rates() == pytest.approx([1e3 / 30, 1e3 / 11, 1e3 / 24])


def test_what_a_frame_takes(monkeypatch):
    readings = iter([[0.0, 0.0, 5, 1, 0], [30.0, 3.0, 8, 2, 0], [100.0, 4.0, 9, 2, 1], [110.0, 5.0, 9, 2, 4]])
    monkeypatch.setattr(Meter, "_read", staticmethod(lambda: next(readings)))
    meter = Meter()
    for frames in (3, 1):
        with meter.running(frames):
            pass
    assert meter.per_frame() == Usage(10.0, 1.0, 0.75, 0.25, 0.75)
    assert Meter().per_frame() == Usage(0, 0, 0, 0, 0)


def test_what_is_read_is_of_this_process():
    meter = Meter()
    with meter.running(1), mmap.mmap(-1, 64 * mmap.PAGESIZE) as memory:
        for page in range(64):
            memory[page * mmap.PAGESIZE] = 1
    assert meter.per_frame().page_faults > 0


def test_pauses_alternate_and_are_compared_with_none(monkeypatch):
    order = []

    def window(case, device, n, first):
        case.step(first)
        return {"nothing": 10.0, "short": 20.0}[order[-1]]

    pauses = {kind: lambda seconds, kind=kind: order.append(kind) for kind in ("nothing", "short")}
    monkeypatch.setattr(turns, "PAUSES", pauses)
    monkeypatch.setattr(turns, "window_slice", window)
    nothing, short = measure_pauses(Case(("a",), lambda i: None), BUDGET, frames=3)
    assert [kind for kind, _ in itertools.groupby(order)] == ["nothing", "short"] * 2
    assert len(order) == 2 * 2 * (turns.UNTIMED + 3)
    assert (nothing.before, nothing.over_stream) == ("nothing", Ratio(1, 1, 1))
    assert (short.before, short.over_stream, short.latency_ms.p50) == ("short", Ratio(2, 2, 2), 20.0)
    assert short.latency_ms.n == 6


def test_every_pause_can_be_made(monkeypatch):
    monkeypatch.setattr(turns, "BETWEEN_LOOKS", 0.0)
    monkeypatch.setattr(turns, "wait_until_asleep", lambda seconds: True)
    for pause in turns.PAUSES.values():
        pause(0.0)
