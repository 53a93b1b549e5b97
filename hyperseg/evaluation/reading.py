"""Reading ahead: threads load the next items while the present one is computed, and never more than a few."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Key = TypeVar("Key")
Loaded = TypeVar("Loaded")


def read_ahead(
    keys: Iterable[Key], load: Callable[[Key], Loaded], workers: int = 2, ahead: int = 4
) -> Iterator[tuple[Key, Loaded | Exception]]:
    """Load items in threads; yield each key with what was loaded or the exception that `load` raised, in order.

    Args:
        keys: what to load.
        load: called with a key, by several threads at a time.
        workers: number of threads; decoders of images release Python's lock.
        ahead: most items that are loaded and not yet read.
    """
    if workers < 1 or ahead < 1:
        raise ValueError(f"{workers} threads and {ahead} items ahead were asked for; both must be at least 1")
    waiting: deque[tuple[Key, Future[Loaded]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="hyperseg-read")
    try:
        for key in keys:
            waiting.append((key, pool.submit(load, key)))
            if len(waiting) > ahead:
                first, future = waiting.popleft()
                yield first, _outcome(future)
        while waiting:
            first, future = waiting.popleft()
            yield first, _outcome(future)
    finally:
        pool.shutdown(cancel_futures=True)


def _outcome(future: "Future[Any]") -> Any:
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, Exception):
        return error
    raise error
