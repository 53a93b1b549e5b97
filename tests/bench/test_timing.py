"""Timing: statistics, order of cases, and the steps around every sample."""

import itertools
import random
from dataclasses import asdict

import numpy as np
import pytest
import torch

from bench.core import timing
from bench.core.timing import Budget, Case, Samples, SliceSteps, schedule, slice_steps

CPU = torch.device("cpu")


@pytest.mark.parametrize("n", [1, 2, 3, 10, 101])
def test_statistics_agree_with_numpy(n):
    generator = random.Random(n)
    values = [generator.lognormvariate(0, 1) for _ in range(n)]
    found = asdict(timing.summarise(values))
    assert found["n"] == n
    expected = {
        "min": np.min(values),
        "max": np.max(values),
        "mean": np.mean(values),
        "std": np.std(values, ddof=1) if n > 1 else 0,
        "p50": np.percentile(values, 50),
        "p90": np.percentile(values, 90),
        "p99": np.percentile(values, 99),
    }
    assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-12)


def test_quantile_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="no samples"):
        timing.quantile([], 0.5)


def test_schedule_alternates():
    assert schedule(3, 2) == [0, 1, 2, 0, 1, 2]
    assert all(a != b for a, b in itertools.pairwise(schedule(2, 5)))


def test_slices_share_the_time_between_latency_and_windows():
    budget = Budget(seconds=8, rounds=4)
    assert slice_steps(budget, 0.01, cuda=False) == SliceSteps(latency=100, events=0, window=100)
    assert slice_steps(budget, 0.01, cuda=True) == SliceSteps(latency=50, events=50, window=100)
    assert slice_steps(budget, 100.0, cuda=False) == SliceSteps(latency=1, events=0, window=1)
    assert slice_steps(Budget(8, 4, iterations=10), 100.0, cuda=True) == SliceSteps(latency=3, events=3, window=3)


def test_slices_are_capped():
    assert slice_steps(Budget(seconds=8, rounds=4, most=30), 0.01, cuda=False) == SliceSteps(
        latency=30, events=0, window=30
    )
    assert slice_steps(Budget(seconds=8, rounds=4, most=30), 0.5, cuda=False) == SliceSteps(
        latency=2, events=0, window=2
    )


def test_a_pause_precedes_each_slice_and_is_in_no_sample(monkeypatch):
    log: list[str] = []
    monkeypatch.setattr(timing.time, "sleep", lambda seconds: log.append(f"sleep {seconds}"))
    case = Case(("a",), lambda i: log.append("step"))
    budget = Budget(1, 2, iterations=4, warmup_steps=1, warmup_seconds=0, pause=0.5)
    (samples,) = timing.measure([case], CPU, budget)
    # After the pause: one untimed step, two for latency, two in the window.
    assert log[samples.warmup_steps :] == ["sleep 0.5", *["step"] * 5] * 2
    assert len(samples.latency_ms) == 4


def test_cases_alternate_in_their_own_context():
    calls: list[tuple[str, int]] = []
    inside: list[str] = []

    class Context:
        def __init__(self, name):
            self.name = name

        def __enter__(self):
            inside.append(self.name)

        def __exit__(self, *error):
            inside.pop()

    def case(name):
        def step(i):
            assert inside == [name]
            calls.append((name, i))

        return Case((name,), step, items=2, context=lambda: Context(name))

    rounds: list[int] = []
    budget = Budget(1, 3, iterations=6, warmup_steps=2, warmup_seconds=0)
    results = timing.measure([case("a"), case("b")], CPU, budget, on_round=rounds.append)
    assert rounds == [1, 2, 3]
    for samples in results:
        assert len(samples.latency_ms) == 6
        assert samples.window_items == [4, 4, 4]
        assert samples.device_ms == []
        assert samples.warmup_steps >= 2
    timed = [name for name, _ in calls[sum(s.warmup_steps for s in results) :]]
    assert [name for name, _ in itertools.groupby(timed)] == ["a", "b"] * 3


def test_slices_on_a_gpu(monkeypatch):
    """With a mocked torch.cuda: events are recorded around each step, and every sample is synchronised."""
    log: list[str] = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            log.append("record")

        def elapsed_time(self, other):
            return 0.25

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: log.append("sync"))
    case = Case(("a",), lambda i: log.append(f"step {i}"))
    cuda = torch.device("cuda", 0)
    assert timing.event_slice(case, cuda, 2, 0) == [0.25, 0.25]
    assert log == ["sync", "record", "step 0", "record", "sync", "sync", "record", "step 1", "record", "sync"]
    log.clear()
    timing.window_slice(case, cuda, 3, 5)
    assert log == ["sync", "step 5", "step 6", "step 7", "sync"]
    log.clear()
    timing.latency_slice(case, cuda, 2, 0)
    assert log == ["sync", "step 0", "sync", "sync", "step 1", "sync"]
    (samples,) = timing.measure([case], cuda, Budget(1, 2, iterations=4, warmup_steps=2, warmup_seconds=0))
    assert len(samples.device_ms) == len(samples.latency_ms) == 4


def test_inputs_rotate():
    seen = []
    timing.measure([Case(("a",), lambda i: seen.append(i % 2))], CPU, Budget(1, 2, iterations=4, warmup_steps=2))
    assert {0, 1} == set(seen[-8:])


def test_warm_up_ends_where_steps_never_agree():
    steps, _, seconds = timing.warm_up(Case(("a",), lambda i: None), CPU, Budget(1, 1, warmup_seconds=0.0))
    assert steps >= 3
    assert seconds >= 0


def test_items_per_second():
    samples = Samples(window_items=[4, 8], window_ms=[100.0, 400.0])
    assert samples.rates() == [40.0, 20.0]
    assert samples.ms_per_item() == [25.0, 50.0]
    found = timing.throughput(samples)
    assert (found.rate, found.min, found.max, found.by_window) == (30.0, 20.0, 40.0, [40.0, 20.0])
    assert found.spread_percent == pytest.approx(100 * 20 / 30)
