import itertools
import random

import numpy as np
import pytest
import torch

from bench import harness
from bench.harness import Budget, Case, Plan, Samples, plan, schedule

CPU = torch.device("cpu")


@pytest.mark.parametrize("n", [1, 2, 3, 10, 101])
def test_statistics_agree_with_numpy(n):
    generator = random.Random(n)
    values = [generator.lognormvariate(0, 1) for _ in range(n)]
    found = harness.summarise(values)
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
        harness.quantile([], 0.5)


def test_schedule_alternates():
    assert schedule(3, 2) == [0, 1, 2, 0, 1, 2]
    assert all(a != b for a, b in itertools.pairwise(schedule(2, 5)))


def test_plan_shares_the_time_between_latency_and_frames_in_flight():
    budget = Budget(seconds=8, rounds=4)
    assert plan(budget, 0.01, cuda=False) == Plan(latency=100, events=0, window=100)
    assert plan(budget, 0.01, cuda=True) == Plan(latency=50, events=50, window=100)
    assert plan(budget, 100.0, cuda=False) == Plan(latency=1, events=0, window=1)
    assert plan(Budget(8, 4, iterations=10), 100.0, cuda=True) == Plan(latency=3, events=3, window=3)


def test_plan_is_capped():
    assert plan(Budget(seconds=8, rounds=4, most=30), 0.01, cuda=False) == Plan(latency=30, events=0, window=30)
    assert plan(Budget(seconds=8, rounds=4, most=30), 0.5, cuda=False) == Plan(latency=2, events=0, window=2)


def test_a_pause_precedes_each_slice_and_is_in_no_sample(monkeypatch):
    log: list[str] = []
    monkeypatch.setattr(harness.time, "sleep", lambda seconds: log.append(f"sleep {seconds}"))
    case = Case(("a",), lambda i: log.append("step"))
    budget = Budget(1, 2, iterations=4, warmup_steps=1, warmup_seconds=0, pause=0.5)
    (samples,) = harness.measure([case], CPU, budget)
    # After the pause one step to wake up, two for latency, two in flight.
    assert log[samples.warmup_steps :] == ["sleep 0.5", *["step"] * 5] * 2
    assert len(samples.latency_ms) == 4


def test_cases_take_turns_in_their_own_context():
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

        return Case((name,), step, images=2, context=lambda: Context(name))

    rounds: list[int] = []
    budget = Budget(1, 3, iterations=6, warmup_steps=2, warmup_seconds=0)
    results = harness.measure([case("a"), case("b")], CPU, budget, on_round=rounds.append)
    assert rounds == [1, 2, 3]
    for samples in results:
        assert len(samples.latency_ms) == 6
        assert samples.window_images == [4, 4, 4]
        assert samples.device_ms == []
        assert samples.warmup_steps >= 2
    timed = [name for name, _ in calls[sum(s.warmup_steps for s in results) :]]
    assert [name for name, _ in itertools.groupby(timed)] == ["a", "b"] * 3


def test_slices_on_a_gpu(monkeypatch):
    """With stand-ins for CUDA: what is recorded around which step, and that nothing runs unsynchronised."""
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
    assert harness.event_slice(case, cuda, 2, 0) == [0.25, 0.25]
    assert log == ["sync", "record", "step 0", "record", "sync", "sync", "record", "step 1", "record", "sync"]
    log.clear()
    harness.window_slice(case, cuda, 3, 5)
    assert log == ["sync", "step 5", "step 6", "step 7", "sync"]
    log.clear()
    harness.latency_slice(case, cuda, 2, 0)
    assert log == ["sync", "step 0", "sync", "sync", "step 1", "sync"]
    (samples,) = harness.measure([case], cuda, Budget(1, 2, iterations=4, warmup_steps=2, warmup_seconds=0))
    assert len(samples.device_ms) == len(samples.latency_ms) == 4


def test_inputs_rotate():
    seen = []
    harness.measure([Case(("a",), lambda i: seen.append(i % 2))], CPU, Budget(1, 2, iterations=4, warmup_steps=2))
    assert {0, 1} == set(seen[-8:])


def test_warm_up_ends_where_steps_never_agree():
    steps, _, seconds = harness.warm_up(Case(("a",), lambda i: None), CPU, Budget(1, 1, warmup_seconds=0.0))
    assert steps >= 3
    assert seconds >= 0


def test_frames_per_second():
    assert Samples(window_images=[4, 8], window_ms=[100.0, 400.0]).fps() == [40.0, 20.0]
