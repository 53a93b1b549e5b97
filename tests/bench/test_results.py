"""Result files: what is written is read, also version 1, and every sample is kept."""

import json
import math
import os
from dataclasses import asdict
from pathlib import Path

import pytest

from bench.core import results
from bench.core.parity import Parity
from bench.core.results import NetworkResults, Results, Row
from bench.core.roofline import Bound
from bench.core.timing import Ratio, Samples, Summary, summarise, throughput

STORED = sorted((Path(__file__).parents[2] / "bench/results").glob("*.json"))


def timed(samples: Samples, **more) -> Row:
    return Row(latency_ms=summarise(samples.latency_ms), throughput=throughput(samples), samples=samples, **more)


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "ops.json"
    samples = Samples([1.0, 2.5], [], [4, 4], [8.0, 16.0], 3, True)
    row = timed(
        samples,
        operator="stem",
        backend="cpp",
        arguments=["float32[1, 3]", [1, 2], None, "own"],
        parity_before=Parity(True, relative=1e-7),
        work=results.Work(None, 100),
        roofline=Bound(1e-3, "memory", 50.0),
        over_reference=Ratio(2.0, 1.5, 2.5),
        samples_alone=samples,
        overhead_us=results.Overhead([2.0], [1.0]),
    )
    entry = NetworkResults(name="m", resolution=[512, 1024], dtype="float32", rows=[row], refused=["x"])
    written = Results(kind="hyperseg-ops", arguments={"dtype": "float32"}, models=[entry])
    results.write_results(path, written)
    assert results.read_results(path) == written
    (stored,) = json.loads(path.read_text())["models"][0]["rows"]
    assert "mode" not in stored, "fields that are not set are left out"


def test_numbers_in_a_file(tmp_path):
    path = tmp_path / "new" / "fps.json"
    document = {
        "schema_version": results.SCHEMA_VERSION,
        "models": [{"name": "x", "rows": [{"raw": {"latency_ms": [1.0, 2.123456789, 3e-7]}, "rate": 1 / 3}]}],
        "nothing": None,
        "words": "not readable: [1, 2]",
        "bad": math.inf,
    }
    results.write_json(path, document)
    found = results.read_json(path)
    row = found["models"][0]["rows"][0]
    assert row["raw"]["latency_ms"] == [1.0, 2.123457, 3e-7]
    assert row["rate"] == 1 / 3
    assert found["bad"] is None
    assert found["words"] == document["words"]
    assert [p.name for p in path.parent.iterdir()] == ["fps.json"]


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 1e5])
def test_ratios_of_stored_samples_are_exact(tmp_path, scale):
    path = tmp_path / "rates.json"
    rates = [scale * (1 + i / 7) for i in range(60)]
    results.write_json(path, {"schema_version": results.SCHEMA_VERSION, "rates": rates})
    stored = results.read_json(path)["rates"]
    ratios = [[a / b for a in given for b in given] for given in (rates, stored)]
    assert ratios[1] == pytest.approx(ratios[0], rel=1.01e-6)


@pytest.mark.parametrize("text", ['{"schema_version": 999}', '{"schema_version": []}', "{}", "[1]"])
def test_another_schema_is_refused(tmp_path, text):
    path = tmp_path / "fps.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="has schema version"):
        results.read_json(path)


@pytest.mark.parametrize(
    "models",
    ['[{"rows": []}]', '[{"name": "m", "rows": [{}]}]', '[{"name": "m", "unknown": 1}]', '"text"', "[1]"],
    ids=["no name", "empty row", "unknown field", "text", "number"],
)
@pytest.mark.parametrize("version", [1, results.SCHEMA_VERSION])
def test_an_incomplete_file_is_refused(tmp_path, models, version):
    path = tmp_path / "fps.json"
    path.write_text(f'{{"schema_version": {version}, "models": {models}}}')
    with pytest.raises(ValueError, match="not a complete result file"):
        results.read_results(path)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "fps.json"
    results.write_json(path, {"schema_version": 1})

    def fail(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        results.write_json(path, {"schema_version": 2})
    assert json.loads(path.read_text()) == {"schema_version": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["fps.json"]


# Version 1

RAW = {
    "latency_ms": [10.0, 20.0],
    "device_ms": [],
    "window_images": [2, 2],
    "window_ms": [20.0, 40.0],
    "warmup_steps": 3,
    "warmup_stable": True,
}
SAMPLES = Samples([10.0, 20.0], [], [2, 2], [20.0, 40.0], 3, True)
TIMED = {
    "latency_ms": asdict(summarise(RAW["latency_ms"])),
    "throughput": {"fps": 75.0, "min": 50.0, "max": 100.0, "spread_percent": 66.7, "fps_by_window": [100.0, 50.0]},
    "warmup": {"steps": 3, "stable": True},
    "raw": RAW,
}


def version_1(tmp_path, kind: str, row: dict) -> Row:
    path = tmp_path / "old.json"
    entry = {"name": "m", "rows": [row], "refused": [], "resolution": [64, 64], "dtype": "float32"}
    path.write_text(json.dumps({"schema_version": 1, "kind": kind, "ceilings": None, "models": [entry]}))
    (found,) = results.read_results(path).rows
    return found


def test_version_1_of_fps(tmp_path):
    work = {"flops": 5, "compulsory_bytes": 7, "unfused_bytes": 9, "operators": 2, "uncounted_operators": []}
    found = version_1(tmp_path, "hyperseg-fps", {"mode": "eager", "scope": "host", "work": work, **TIMED})
    assert (found.mode, found.scope, found.samples) == ("eager", "host", SAMPLES)
    assert (found.throughput.rate, found.throughput.by_window) == (75.0, [100.0, 50.0])
    assert found.work == results.Work(5, 7, 9, 2, [])


def test_version_1_of_the_paper(tmp_path):
    row = {"mode": "module", "scope": "paper", "fps": 4 / 0.03, "latency_ms": TIMED["latency_ms"]}
    found = version_1(tmp_path, "hyperseg-fps", {**row, "raw": {"latency_ms": [10.0, 20.0]}})
    assert found.samples == Samples([10.0, 20.0], [], [4], [30.0])
    assert found.throughput.rate == pytest.approx(found.samples.rates()[0])


def test_version_1_of_overhead(tmp_path):
    times = {"whole": [10_000.0, 20_000.0], "alone": [1.0, 1.0], "between": [9_999.0, 19_999.0]}
    row = {"operator": "stem", "backend": "cpp", "call": "x", "microseconds": times}
    found = version_1(tmp_path, "hyperseg-overhead", {**row, "raw": {"whole": RAW, "alone": RAW}})
    assert found.overhead_us == results.Overhead(times["whole"], times["alone"])
    assert found.overhead_us.between == times["between"]
    assert (found.samples, found.samples_alone) == (SAMPLES, SAMPLES)
    assert found.throughput == throughput(SAMPLES)


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_stored_results_keep_every_number(tmp_path, path):
    found = results.read_results(path)
    old = [row for entry in json.loads(path.read_text())["models"] for row in entry["rows"]]
    assert len(old) == len(found.rows) > 0
    for before, row in zip(old, found.rows, strict=True):
        if "throughput" in before and "fps" in before["throughput"]:
            assert row.throughput.rate == before["throughput"]["fps"]
            assert row.samples.window_ms == before["raw"]["window_ms"]
            assert row.latency_ms == Summary(**before["latency_ms"])
    results.write_results(tmp_path / "new.json", found)
    again = results.read_results(tmp_path / "new.json")
    for before, row in zip(found.rows, again.rows, strict=True):
        assert (row.throughput.rate, row.latency_ms) == (before.throughput.rate, before.latency_ms)
        assert row.samples.latency_ms == pytest.approx(before.samples.latency_ms, rel=5e-7)
