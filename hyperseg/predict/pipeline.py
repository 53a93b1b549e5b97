"""Three things at once: a thread reads the next frames, the caller labels one, a thread writes the last results."""

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from hyperseg.predict.errors import FrameError

Item = TypeVar("Item")
Labelled = TypeVar("Labelled")
Written = TypeVar("Written")


@dataclass(frozen=True)
class Failed:
    """A frame that could not be read, labelled or written."""

    error: FrameError


@dataclass
class Times:
    """Seconds that the stages of a run took, added up over its frames. Stages overlap, so the run may take less.

    waited: how long the labelling waited for frames to be read, and for results to be written.
    """

    read: float = 0.0
    label: float = 0.0
    write: float = 0.0
    waited: float = 0.0
    frames: int = 0


class _End:
    """The source ended, by itself or with an error that is not about one frame."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


class ReadAhead(Generic[Item]):
    """Iterates over the items of a source that a thread reads, at most `ahead` of them in advance.

    It yields `Failed` for a FrameError of the source, and then goes on. Other errors are raised. With ahead = 0 there
    is no thread.
    """

    def __init__(self, source: Iterable[Item], ahead: int, times: Times | None = None) -> None:
        self._items = iter(source)
        self._times = times or Times()
        self._stop = threading.Event()
        self._queue: queue.Queue[Item | Failed | _End] = queue.Queue(max(ahead, 1))
        self._thread: threading.Thread | None = None
        if ahead:
            # A daemon: a camera that hangs must not keep the process from ending.
            self._thread = threading.Thread(target=self._read, name="hyperseg-read", daemon=True)
            self._thread.start()

    def __iter__(self) -> Iterator[Item | Failed]:
        while True:
            item = self._queue.get() if self._thread is not None else self._next()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item

    def close(self) -> None:
        """End the thread. A frame that is being read is waited for, a second at most."""
        self._stop.set()
        if self._thread is not None:
            with contextlib.suppress(queue.Empty):  # the thread may be waiting to put an item
                while self._thread.is_alive():
                    self._queue.get_nowait()
            self._thread.join(timeout=1)

    def _read(self) -> None:
        while not self._stop.is_set():
            item = self._next()
            while not self._stop.is_set():
                try:
                    self._queue.put(item, timeout=0.1)
                    break
                except queue.Full:
                    pass
            if isinstance(item, _End):
                return

    def _next(self) -> Item | Failed | _End:
        begin = time.perf_counter()
        try:
            item = next(self._items)
            self._times.read += time.perf_counter() - begin
            return item
        except StopIteration:
            return _End()
        except FrameError as error:
            return Failed(error)
        except BaseException as error:  # raised where the items are used
            return _End(error)


class Newest(Generic[Item]):
    """Iterates over the items of a live source: a thread reads them all, and each step yields the newest one.

    Errors of single frames are not left out. Otherwise like `ReadAhead`.
    """

    def __init__(self, source: Iterable[Item], times: Times | None = None) -> None:
        self._reader = ReadAhead(source, 0, times)
        self._changed = threading.Condition()
        self._newest: list[Item] = []  # one at most
        self._failed: deque[Failed] = deque()
        self._end: _End | None = None
        self._stop = False
        self._thread = threading.Thread(target=self._read, name="hyperseg-read", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Item | Failed]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._newest or self._failed or self._end)
                if self._newest:
                    item: Item | Failed = self._newest.pop()
                elif self._failed:
                    item = self._failed.popleft()
                elif self._end is not None and self._end.error is not None:
                    raise self._end.error
                else:
                    return
            yield item

    def close(self) -> None:
        """End the thread. A frame that is being read is waited for, a second at most."""
        self._stop = True
        self._thread.join(timeout=1)

    def _read(self) -> None:
        end = _End()
        try:
            for item in self._reader:
                with self._changed:
                    if isinstance(item, Failed):
                        self._failed.append(item)
                    else:
                        self._newest[:] = [item]
                    self._changed.notify()
                if self._stop:
                    break
        except BaseException as error:  # raised where the items are used
            end = _End(error)
        with self._changed:
            self._end = end
            self._changed.notify()


def overlapped(
    source: Iterable[Item],
    label: Callable[[Item], Labelled | Failed],
    write: Callable[[Labelled], Written | Failed],
    ahead: int,
    live: bool = False,
    times: Times | None = None,
) -> Iterator[Written | Failed]:
    """Yield what `write` returns for each item of a source, in its order; of a live source for the newest ones.

    `label` runs in the calling thread, `write` in another one, up to `ahead` results later; both return `Failed` for an
    error of one frame. With ahead = 0 all of it happens in the calling thread, one item each time a result is read.

    Raises:
        The errors of the source, of `label` and of `write`, once the results before them are yielded.
    """
    times = times or Times()
    reader = Newest(source, times) if live else ReadAhead(source, ahead, times)
    label, write = _timed(label, times, "label"), _timed(write, times, "write")
    try:
        if ahead:
            yield from _written_in_a_thread(reader, label, write, ahead, times)
        else:
            for item in reader:
                times.frames += 1
                yield _then(item if isinstance(item, Failed) else label(item), write)
    finally:
        reader.close()


def _timed(work: Callable[[Item], Written], times: Times, stage: str) -> Callable[[Item], Written]:
    def call(item: Item) -> Written:
        begin = time.perf_counter()
        try:
            return work(item)
        finally:  # each stage is one thread, so nobody else adds to this sum
            setattr(times, stage, getattr(times, stage) + time.perf_counter() - begin)

    return call


def _then(output: Labelled | Failed, write: Callable[[Labelled], Written | Failed]) -> Written | Failed:
    return output if isinstance(output, Failed) else write(output)


def _written_in_a_thread(
    reader: ReadAhead[Item] | Newest[Item],
    label: Callable[[Item], Labelled | Failed],
    write: Callable[[Labelled], Written | Failed],
    ahead: int,
    times: Times,
) -> Iterator[Written | Failed]:
    pending: deque[Future[Written | Failed]] = deque()
    cause: BaseException | None = None
    broken = threading.Event()

    def finish(output: Labelled | Failed) -> Written | Failed:
        if broken.is_set():  # an earlier output ended the run; the results after its error are not read
            raise RuntimeError("an earlier output failed")
        try:
            return _then(output, write)
        except BaseException:
            broken.set()
            raise

    # Leaving the block waits for what is being written, so that no output is half-written.
    with ThreadPoolExecutor(1, "hyperseg-write") as writer:
        try:
            items = iter(reader)
            while True:
                begin = time.perf_counter()
                try:
                    item = next(items, None)
                    times.waited += time.perf_counter() - begin
                    if item is None:
                        break
                    times.frames += 1
                    output = item if isinstance(item, Failed) else label(item)
                except Exception as error:
                    cause = error
                    break
                pending.append(writer.submit(finish, output))
                while pending and (len(pending) > ahead or pending[0].done()):
                    begin = time.perf_counter()
                    result = pending.popleft().result()
                    times.waited += time.perf_counter() - begin
                    yield result
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:  # after an error, or when the caller stops early
                future.cancel()
    if cause is not None:
        raise cause
