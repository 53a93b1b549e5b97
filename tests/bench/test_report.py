import json
import math

import pytest

from bench import report


def test_json_round_trip(tmp_path):
    path = tmp_path / "new" / "fps.json"
    document = {
        "schema_version": report.SCHEMA_VERSION,
        "models": [{"name": "x", "rows": [{"raw": {"latency_ms": [1.0, 2.123456789, 3e-7]}, "fps": 1 / 3}]}],
        "nothing": None,
        "words": "not readable: [1, 2]",
        "bad": math.inf,
    }
    report.write_json(path, document)
    found = report.read_json(path)
    row = found["models"][0]["rows"][0]
    assert row["raw"]["latency_ms"] == [1.0, 2.12346, 0.0]
    assert row["fps"] == 1 / 3
    assert found["bad"] is None
    assert found["words"] == document["words"]
    assert [p.name for p in path.parent.iterdir()] == ["fps.json"]


def test_another_schema_is_refused(tmp_path):
    path = tmp_path / "fps.json"
    report.write_json(path, {"schema_version": 999})
    with pytest.raises(ValueError, match="999"):
        report.read_json(path)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "fps.json"
    report.write_json(path, {"schema_version": 1})

    def fail(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(report.os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        report.write_json(path, {"schema_version": 2})
    assert json.loads(path.read_text()) == {"schema_version": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["fps.json"]


def test_table_columns_line_up():
    lines = report.table(["mode", "FPS"], [["eager", "1.5"], ["cudagraph", "1234"]], left=1).splitlines()
    assert lines[0] == "mode        FPS"
    assert lines[2] == "eager       1.5"
    assert lines[3] == "cudagraph  1234"


def test_numbers_are_plain():
    assert [report.fixed(v) for v in (0.012345, 1.23456, 123456.7, 0)] == ["0.01235", "1.235", "123457", "0"]


def test_percentiles_need_samples():
    assert report.number({"n": 9, "p90": 1.0}, "p90") == "-"
    assert report.number({"n": 10, "p90": 1.0}, "p90") == "1.000"
    assert report.number({"n": 99, "p99": 1.0}, "p99") == "-"


def test_a_disagreement_is_never_rounded_away():
    check = {"agreement": 99.9999, "relative": None}
    assert report.parity_cell({"parity_before": check, "parity_after": check}) == "99.999 %"


def test_operators_say_why_a_backend_is_passed_over():
    slow = {"backend": "reference", "passed_over": {"cpp": ["not built"]}}
    info = {"operators": {"cpu": {"decoder_level": slow, "upsample_argmax": slow}}}
    expected = "auto takes reference for decoder_level, upsample_argmax; not cpp: not built"
    assert report.operators(info, "cpu") == expected
