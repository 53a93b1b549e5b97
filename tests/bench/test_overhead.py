"""bench/overhead.py: one row per operator and backend, differences by round, no time for a wrong output."""

import pytest

from bench import ops, overhead
from bench.core.networks import load
from bench.core.results import read_results
from bench.core.timing import median
from hyperseg.ops import BACKENDS
from hyperseg.ops.backends import Backend


@pytest.fixture(scope="module")
def loaded():
    return load("hyperseg-s-cityscapes", None, 0)


@pytest.fixture
def run(loaded, monkeypatch, tmp_path):
    """Run the command; return its exit code and the results of its one network."""

    def go(*extra):
        monkeypatch.setattr(ops, "load", lambda *args: loaded)
        path = tmp_path / "overhead.json"
        code = overhead.main(["--device", "cpu", "--quick", "--iterations", "4", "--json", str(path), *extra])
        return code, read_results(path).models[0]

    return go


def test_rows_have_both_ways_of_calling(run, capsys):
    code, entry = run("--op", "generate_weights", "upsample_argmax", "--backend", "reference", "--backward")
    assert code == 0
    found = [(row.operator, row.backend) for row in entry.rows]
    assert found == [
        (name, "reference") for name in ("generate_weights", "upsample_argmax", "generate_weights_backward")
    ]
    for row in entry.rows:
        whole, alone, between = row.overhead_us.whole, row.overhead_us.alone, row.overhead_us.between
        assert len(whole) == len(alone) == len(between) == 2
        assert between == pytest.approx([w - a for w, a in zip(whole, alone, strict=True)])
        assert median(whole) > 0
    assert "between us" in capsys.readouterr().out


def test_a_wrong_backend_gets_no_time(run, monkeypatch):
    def labels(*args):
        return BACKENDS["reference"].supported["upsample_argmax"](*args) + 1

    monkeypatch.setitem(BACKENDS, "faulty", Backend("faulty", "", {"upsample_argmax": labels}))
    code, entry = run("--op", "upsample_argmax", "--backend", "faulty")
    assert code == 2
    assert [row.backend for row in entry.rows] == ["reference"]
    assert "upsample_argmax" in entry.refused[0]


def test_an_unsupported_call_is_reported(run, monkeypatch, capsys):
    monkeypatch.setitem(BACKENDS, "empty", Backend("empty", "", {}))
    code, _ = run("--op", "upsample_argmax", "--backend", "empty")
    assert code == 1
    assert "empty does not support upsample_argmax here" in capsys.readouterr().out


def test_a_decoder_is_refused(capsys):
    assert overhead.main(["--device", "cpu", "--op", "decoder"]) == 1
    assert "A whole decoder is not a single call; bench/ops.py times it" in capsys.readouterr().err
