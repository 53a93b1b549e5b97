import queue
from types import SimpleNamespace

import pytest

from hyperseg.ops.backends import verdicts
from hyperseg.verify import processes, verification


@pytest.fixture(autouse=True)
def a_new_machine(monkeypatch, tmp_path):
    """Turn verification on, with an empty cache folder and no verdicts in memory."""
    monkeypatch.setenv("HYPERSEG_VERIFY", "1")
    monkeypatch.setenv("HYPERSEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HYPERSEG_BACKEND", raising=False)
    tables = (verdicts.PASSED_OVER, verdicts._known, verdicts._warned, verification._done)
    for table in tables:
        table.clear()
    yield
    for table in tables:
        table.clear()


@pytest.fixture
def patience(monkeypatch):
    """Limit the time of a case only when its child has reported that it hangs: on a busy machine others take long too.

    Returns the limits, in seconds, that were waited for.
    """
    limits = []

    class Reports(queue.SimpleQueue):
        hangs = False

        def get(self, block=True, timeout=None):
            if self.hangs:
                limits.append(timeout)
            line = super().get(block, timeout if self.hangs else 600)
            self.hangs = line is not None and line.startswith('{"hangs"')
            return line

    monkeypatch.setattr(processes, "queue", SimpleNamespace(SimpleQueue=Reports, Empty=queue.Empty))
    monkeypatch.setattr(processes, "CASE_PATIENCE", 0.5)
    return limits
