import pytest

from hyperseg.ops.backends import verdicts
from hyperseg.verify import verification


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
