"""Worker processes: PyTorch's DataLoader over the numbers of a run, and their end."""

import atexit
import contextlib
import multiprocessing
import signal
import sys
import warnings
import weakref
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch.utils.data import DataLoader

from hyperseg._text import brief
from hyperseg.data.errors import DataError
from hyperseg.data.pipeline.sources import Failure, HostBatch, Source

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Workers:
    """Has a source make batches, in order, in this process or in others that read ahead.

    Args:
        source: of the batches.
        workers: number of processes; 0: none.
        pin: for copies to a GPU: batches are in pinned memory, and processes are not forks of this one.
        start_method: of processes; None: one that suits `pin`.
    """

    def __init__(self, source: Source, workers: int, pin: bool, start_method: str | None) -> None:
        if workers < 0:
            raise ValueError(f"workers is {workers}; give 0 (none) or more")
        if start_method is None and pin:  # a fork of a process with a CUDA context and a pinning thread can deadlock
            start_method = "forkserver" if sys.platform == "linux" else "spawn"
        context: Any = None
        if workers and start_method is not None:
            context = multiprocessing.get_context(start_method)
            if start_method == "forkserver":  # imported once, in the server, instead of in each process
                context.set_forkserver_preload([__name__])
        self._numbers = _Numbers()
        with _quiet_start():
            self._loader: DataLoader[Any] = DataLoader(
                cast("Any", source),
                batch_sampler=cast("Any", self._numbers),
                num_workers=workers,
                collate_fn=_unchanged,
                pin_memory=pin,
                worker_init_fn=init_worker,
                multiprocessing_context=context,
                persistent_workers=workers > 0,
                generator=torch.Generator(),  # the state of the global one belongs to the training
            )
        self._iterator: Any = None
        _open.add(self)

    def run(self, numbers: Iterator[range]) -> Iterator[HostBatch | Failure]:
        """Yield the batches of these numbers; earlier runs end. Raises DataError."""
        self._numbers.rest = numbers
        with _quiet_start():
            self._iterator = iter(self._loader)
        while True:
            try:
                batch = next(self._iterator)
            except StopIteration:
                return
            except (OSError, EOFError) as error:  # it has ended while it sent a batch
                raise self._ended(error) from None
            yield batch

    @contextlib.contextmanager
    def reporting(self) -> Iterator[None]:
        """Turn PyTorch's error about a worker that died, which it raises wherever this process is, into DataError."""
        try:
            yield
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise self._ended(error) from None

    def _ended(self, error: Exception) -> DataError:
        self.close()
        return DataError(
            f"a worker has ended ({brief(error)}); if memory or shared memory (/dev/shm) is short, take fewer workers"
        )

    def close(self) -> None:
        """End the processes."""
        iterator, self._iterator, self._loader._iterator = self._iterator, None, None
        if hasattr(iterator, "_shutdown_workers"):
            iterator._shutdown_workers()
            for process in iterator._workers:  # those that did not end by themselves: they ignore terminate()
                if process.is_alive():
                    process.kill()


class _Numbers:
    """The batch sampler of a DataLoader that is used for one run after another."""

    def __init__(self) -> None:
        self.rest: Iterator[range] = iter(())

    def __iter__(self) -> Iterator[range]:
        return self.rest


def _unchanged(batch: Any) -> Any:
    return batch


@contextlib.contextmanager
def _quiet_start() -> Iterator[None]:
    """Start workers without PyTorch's warning about more workers than CPUs, and with signals blocked in them.

    A signal that comes before :func:`init_worker` has run would end a worker, and with it the run.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        if not hasattr(signal, "pthread_sigmask"):
            yield
            return
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def init_worker(worker: int) -> None:
    """Have a worker use one thread, and leave signals to the main process.

    A scheduler or a terminal sends them to workers as well. If those ended, the main process could not finish its step
    and save.
    """
    torch.set_num_threads(1)
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


_open: "weakref.WeakSet[Workers]" = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """End all workers before multiprocessing sends them a SIGTERM, which they ignore, and waits for them."""
    for workers in list(_open):
        workers.close()
