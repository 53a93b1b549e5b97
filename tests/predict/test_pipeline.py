"""Reading, labelling and writing at once: order, errors, ends, and threads that end."""

import threading
import time

import pytest

from hyperseg.predict import FrameError, SourceError
from hyperseg.predict.pipeline import Failed, Newest, Times, overlapped


def numbers(count, fail_at=None, error=None):
    for number in range(count):
        if number == fail_at:
            raise error
        yield number


class Steps:
    """An iterator that raises at some steps and then goes on."""

    def __init__(self, *steps):
        self.steps = list(steps)

    def __iter__(self):
        return self

    def __next__(self):
        if not self.steps:
            raise StopIteration
        if isinstance(step := self.steps.pop(0), Exception):
            raise step
        return step


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = threading.active_count()
    yield
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def run(source, ahead, label=lambda item: item, write=lambda item: item, **options):
    return overlapped(source, label, write, ahead, **options)


@pytest.mark.parametrize("ahead", [0, 1, 2, 5])
def test_results_are_in_order(ahead):
    written = []
    times = Times()
    results = run(numbers(20), ahead, lambda item: item * 2, lambda item: written.append(item) or item + 1, times=times)
    assert list(results) == [2 * number + 1 for number in range(20)]
    assert written == [2 * number for number in range(20)]
    assert times.frames == 20
    assert list(run([], ahead)) == []


def test_the_three_stages_overlap():
    """Each waits until the others are at other items: in one thread this would not end."""
    meeting = threading.Barrier(3, timeout=30)

    def source():
        for number in range(5):
            if number == 4:
                meeting.wait()
            yield number

    def at(number):
        return lambda item: (meeting.wait() if item == number else None, item)[1]

    assert list(run(source(), 2, at(2), at(1))) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("ahead", [1, 3])
def test_memory_is_bounded(ahead):
    read, used = [], []
    results = run((read.append(number) or number for number in range(50)), ahead)
    for result in results:
        used.append(result)
        time.sleep(0.002)
        assert len(read) - len(used) <= 2 * ahead + 2
    assert used == read


@pytest.mark.parametrize("ahead", [0, 2])
def test_a_frame_that_fails_is_one_of_the_results(ahead):
    bad = SourceError("unreadable")
    worse = FrameError("too large")
    results = list(
        run(
            Steps(0, bad, 1, 2, 3),
            ahead,
            lambda item: Failed(worse) if item == 1 else item,
            lambda item: Failed(worse) if item == 3 else item,
        )
    )
    assert results == [0, Failed(bad), Failed(worse), 2, Failed(worse)]


@pytest.mark.parametrize("ahead", [0, 1, 3])
@pytest.mark.parametrize("stage", ["source", "label", "write"])
def test_other_errors_end_the_run_after_the_results_before_them(ahead, stage):
    error = ValueError("a bug")
    written = []

    def fails(item):
        if item == 3:
            raise error
        return item

    def write(item):
        if stage == "write":
            fails(item)
        written.append(item)
        return item

    source = numbers(9, 3, error) if stage == "source" else numbers(9)
    results = run(source, ahead, fails if stage == "label" else lambda item: item, write)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="a bug") as caught:
        next(results)
    assert caught.value is error
    assert written == [0, 1, 2], "nothing is written after an error"


@pytest.mark.parametrize("ahead", [0, 1, 4])
def test_a_caller_that_stops_early(ahead):
    written = []
    results = run(numbers(100), ahead, write=lambda item: (time.sleep(0.001), written.append(item), item)[2])
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    results.close()
    count = len(written)
    time.sleep(0.01)
    assert len(written) == count <= 3 + 2 * ahead + 1


def test_a_source_that_hangs_does_not_keep_the_run_from_ending():
    release = threading.Event()

    def source():
        yield 0
        release.wait(30)
        yield 1

    results = run(source(), 2)
    assert next(results) == 0
    begin = time.monotonic()
    results.close()
    assert time.monotonic() - begin < 5
    release.set()


@pytest.mark.parametrize("ahead", [0, 1])
def test_of_a_live_source_the_newest_frame_is_labelled(ahead):
    """The source gives ten frames while the first one is labelled: the second result is the tenth."""
    first, given = threading.Event(), threading.Event()

    def source():
        yield 0
        assert first.wait(30)
        yield from range(1, 10)
        given.set()

    def label(item):
        if item == 0:
            first.set()
            assert given.wait(30)
        return item

    assert list(run(source(), ahead, label, live=True)) == [0, 9]


def test_a_live_source_that_is_lost():
    reader = Newest(numbers(3, 2, SourceError("unplugged")))
    items = list(reader)
    assert str(items[-1].error) == "unplugged"
    assert items[-2] == 1
    with pytest.raises(ValueError, match="a bug"):
        list(Newest(numbers(0 + 1, 0, ValueError("a bug"))))
