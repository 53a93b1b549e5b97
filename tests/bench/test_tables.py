"""Text output: columns, numbers, and nothing rounded to look better."""

from bench.core import tables
from bench.core.parity import Parity
from bench.core.results import Row
from bench.core.timing import Samples, summarise, throughput


def test_table_columns_line_up():
    lines = tables.table(["mode", "FPS"], [["eager", "1.5"], ["cudagraph", "1234"]], left=1).splitlines()
    assert lines[0] == "mode        FPS"
    assert lines[2] == "eager       1.5"
    assert lines[3] == "cudagraph  1234"


def test_numbers_are_plain():
    assert [tables.fixed(v) for v in (0.012345, 1.23456, 123456.7, 0)] == ["0.01235", "1.235", "123457", "0"]


def test_percentiles_need_samples():
    assert tables.percentiles(summarise([1.0] * 9), "p50", "p90") == ["1.000", "-"]
    assert tables.percentiles(summarise([1.0] * 10), "p90") == ["1.000"]
    assert tables.percentiles(summarise([1.0] * 99), "p99") == ["-"]
    assert tables.percentiles(None, "p50") == ["-"]


def test_a_disagreement_is_never_rounded_away():
    check = Parity(True, agreement=99.9999)
    samples = Samples([1.0], [], [1], [1.0])
    row = Row(latency_ms=summarise([1.0]), throughput=throughput(samples), samples=samples)
    row.parity_before = row.parity_after = check
    assert tables.parity_cell(row) == "99.999 %"


def test_chosen_backends_come_with_the_reasons_against_others():
    slow = {"backend": "reference", "passed_over": {"cpp": ["not built"]}}
    info = {"operators": {"cpu": {"decoder_level": slow, "upsample_argmax": slow}}}
    expected = "auto takes reference for decoder_level, upsample_argmax; not cpp: not built"
    assert tables.chosen_backends(info, "cpu") == expected
