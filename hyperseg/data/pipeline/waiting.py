"""The share of the time that a training waits for its data."""

import logging
import time

_log = logging.getLogger(__name__)

_LIMIT = 0.05
_BATCHES = 50  # before which the share says little


class WaitMeter:
    """Adds up how long a consumer waited for batches, and gives a hint in the log, once, if it is more than 5 %.

    Args:
        workers: number of worker processes, for the hint.
        cached: whether the data come from a cache already.
    """

    def __init__(self, workers: int, cached: bool) -> None:
        self.waited = self.total = 0.0
        self._workers, self._cached = workers, cached
        self._batches, self._hinted = 0, False
        self._began: float | None = None
        self._since = 0.0

    @property
    def share(self) -> float:
        """Waiting time as a share of all, 0 to 1. The first batch of a run, for which workers start, does not count."""
        return self.waited / self.total if self.total else 0.0

    def restart(self) -> None:
        """Begin a run: the time since the last one does not count."""
        self._began = None

    def ask(self) -> None:
        """The consumer asks for a batch."""
        self._since = time.perf_counter()

    def receive(self) -> None:
        """The consumer has got its batch."""
        now = time.perf_counter()
        if self._began is not None:
            self.waited += now - self._since
            self.total += now - self._began
        self._began = now
        self._batches += 1
        if self._batches >= _BATCHES and self.share > _LIMIT and not self._hinted:
            self._hinted = True
            _log.warning("%s", self.hint())

    def hint(self) -> str:
        """Return what the share is and what can be done about it."""
        advice = [f"more workers (now {self._workers})"]
        if not self._cached:
            advice.append("a cache of the decoded images (hyperseg data cache)")
        return f"{self.share:.0%} of the time is spent waiting for data; try {' or '.join(advice)}"
