"""The share of the time that is spent waiting, by a clock that the test sets."""

import logging

import pytest

from hyperseg.data.pipeline import waiting
from hyperseg.data.pipeline.loader import Loader
from hyperseg.data.pipeline.recipes import Augmentation
from hyperseg.data.pipeline.waiting import WaitMeter


class Clock:
    now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(waiting, "time", clock)
    return clock


def step(meter, clock, waited, computed):
    meter.ask()
    clock.now += waited
    meter.receive()
    clock.now += computed


@pytest.mark.parametrize(("cached", "advice"), [(True, "more workers (now 4)"), (False, "hyperseg data cache")])
def test_the_share_and_the_hint(clock, caplog, cached, advice):
    meter = WaitMeter(4, cached)
    assert meter.share == 0
    step(meter, clock, 100.0, 0.5)  # workers start
    for _ in range(200):
        step(meter, clock, 0.5, 0.5)
    assert meter.share == pytest.approx(0.5)
    clock.now += 1000  # a validation between two runs
    meter.restart()
    step(meter, clock, 50.0, 0.5)
    assert meter.share == pytest.approx(0.5)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith("50% of the time is spent waiting for data; try more workers")
    assert advice in record.getMessage()
    assert ("data cache" in record.getMessage()) != cached


def test_little_waiting_gives_no_hint(clock, caplog):
    meter = WaitMeter(0, False)
    for _ in range(200):
        step(meter, clock, 0.04, 0.96)
    assert meter.share == pytest.approx(0.04)
    assert not caplog.records


def test_a_loader_measures(clock, make_dataset, monkeypatch):
    dataset = make_dataset((8, 8), (8, 8))
    read = type(dataset).sample

    def slow(self, index):
        clock.now += 1.0
        return read(self, index)

    monkeypatch.setattr(type(dataset), "sample", slow)
    with Loader(dataset, Augmentation((8, 8)), batch_size=2, mean=(0.5,) * 3, std=(0.5,) * 3) as loader:
        for _ in loader.run(0, 5):
            clock.now += 6.0
    assert loader.wait_share == pytest.approx(4 * 2 / (4 * 2 + 5 * 6))
