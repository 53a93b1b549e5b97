"""The order of `auto` compared with measured results: those in bench/results, and made-up ones that contradict it."""

from pathlib import Path

import pytest

from bench import preference
from bench.core.results import SCHEMA_VERSION, NetworkResults, Results, Row, read_results, write_results
from bench.core.timing import Samples, summarise, throughput
from hyperseg.ops.backends import dispatch as table

RESULTS = Path(__file__).parents[2] / "bench" / "results"


def comparable(folder: Path) -> list[Path]:
    """Return the results of bench/ops.py that contain operators, not only whole decoders."""
    found = {path: read_results(path) for path in sorted(folder.glob("*.json"))}
    return [
        path for path, results in found.items() if results.kind == "hyperseg-ops" and preference.operator_rows(results)
    ]


def committed() -> list:
    found = [pytest.param(path, id=path.stem) for path in comparable(RESULTS)]
    return found or [pytest.param(None, marks=pytest.mark.skip(reason=f"no result of bench/ops.py in {RESULTS}"))]


@pytest.mark.parametrize("path", committed())
def test_the_table_agrees_with_the_results_in_the_repository(path):
    found = preference.verdicts(preference.read(path))
    wrong = [verdict for verdict in found if not verdict.agrees]
    assert found
    assert not wrong, preference.show(wrong)


def result(*rows: tuple[str, str, str, list[float]]) -> Results:
    """Return results with rows (operator, call, backend, milliseconds of each round)."""
    made = []
    for operator, call, backend, rounds in rows:
        samples = Samples(rounds, [], [4] * len(rounds), [4 * ms for ms in rounds])
        times = 2 if call == "twice" else 1
        measured = {"latency_ms": summarise(rounds), "throughput": throughput(samples), "samples": samples}
        made.append(Row(operator=operator, call=call, backend=backend, times=times, arguments=[], **measured))
    return Results(
        kind="hyperseg-ops",
        environment={"device": {"type": "cpu"}},
        arguments={"dtype": "float32"},
        models=[NetworkResults(name="m", rows=made)],
    )


@pytest.fixture(autouse=True)
def cpp_first(monkeypatch):
    monkeypatch.setitem(table.PREFERENCE, "cpu", ("cpp", "triton", "reference"))
    monkeypatch.setattr(table, "EXCEPTIONS", {})


def test_all_calls_count_as_often_as_they_are_made():
    results = result(
        ("patch_conv2d", "once", "reference", [5.0, 5.0]),
        ("patch_conv2d", "once", "cpp", [1.0, 1.5]),
        ("patch_conv2d", "twice", "reference", [1.0, 1.0]),
        ("patch_conv2d", "twice", "cpp", [2.0, 2.0]),
        ("patch_conv2d", "only the reference", "reference", [100.0, 100.0]),
        ("decoder", "all levels", "reference", [1.0, 1.0]),
        ("decoder", "all levels", "cpp", [9.0, 9.0]),
    )
    (verdict,) = preference.verdicts(results)
    assert verdict.rounds == {"reference": [7.0, 7.0], "cpp": [5.0, 5.5]}
    assert verdict.agrees


def test_a_slower_choice_disagrees_and_the_printed_line_settles_it(tmp_path, capsys, monkeypatch):
    path = tmp_path / "ops.json"
    write_results(
        path, result(("patch_conv2d", "a", "reference", [1.0, 1.1]), ("patch_conv2d", "a", "cpp", [2.0, 1.9]))
    )
    assert preference.main([str(path)]) == 2
    out = capsys.readouterr().out
    assert "DISAGREES: reference was faster in every round" in out
    line = out.strip().splitlines()[-1]
    assert line.strip() == '("cpu", "patch_conv2d"): ("reference",),'
    monkeypatch.setattr(table, "EXCEPTIONS", eval(f"{{{line}}}"))
    assert table.order("patch_conv2d", "cpu") == ("reference",)
    assert preference.main([str(path)]) == 0


def test_a_difference_that_one_round_contradicts_decides_nothing():
    results = result(("patch_conv2d", "a", "reference", [1.0, 1.1]), ("patch_conv2d", "a", "cpp", [2.0, 1.0]))
    assert preference.verdicts(results)[0].agrees


def test_a_backend_that_was_not_measured_keeps_its_place():
    results = result(
        ("patch_conv2d", "a", "reference", [9.0]),
        ("patch_conv2d", "a", "cpp", [2.0]),
        ("patch_conv2d", "a", "new", [1.0]),
    )
    (verdict,) = preference.verdicts(results)
    assert not verdict.agrees
    assert verdict.line.strip() == '("cpu", "patch_conv2d"): ("new", "cpp", "triton", "reference"),'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("{}", "schema version"),
        (f'{{"schema_version": {SCHEMA_VERSION}}}', "not a result of"),
    ],
)
def test_mistakes_are_reported(tmp_path, capsys, text, message):
    path = tmp_path / "x.json"
    if text is not None:
        path.write_text(text)
    assert preference.main([str(path)]) == 1
    assert message in capsys.readouterr().err


def test_whole_decoders_are_skipped(tmp_path, capsys):
    """A file of them alone neither fails nor hides the operators of another file."""
    whole, operators = tmp_path / "decoder.json", tmp_path / "operators.json"
    write_results(whole, result(("decoder", "all levels", "reference", [1.0]), ("decoder", "all levels", "cpp", [9.0])))
    write_results(operators, result(("patch_conv2d", "a", "reference", [9.0]), ("patch_conv2d", "a", "cpp", [2.0])))
    assert comparable(tmp_path) == [operators]
    assert preference.main([str(whole), str(operators)]) == 0
    assert "agrees" in capsys.readouterr().out


def test_nothing_to_compare_is_reported(tmp_path, capsys):
    path = tmp_path / "x.json"
    write_results(path, result(("patch_conv2d", "a", "reference", [1.0])))
    assert preference.main([str(path)]) == 1
    assert "nothing to compare" in capsys.readouterr().out
