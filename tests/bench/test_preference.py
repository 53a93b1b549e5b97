"""The table behind `auto` against measured results: those in bench/results, and made-up ones that contradict it."""

from pathlib import Path

import pytest

from bench import preference
from bench.report import SCHEMA_VERSION, read_json, write_json
from hyperseg.ops import _dispatch as table

RESULTS = Path(__file__).parents[2] / "bench" / "results"


def comparable(folder: Path) -> list[Path]:
    """Every result of bench/ops.py there that has an operator in it: one of the decoder alone says nothing of any."""
    documents = {path: read_json(path) for path in sorted(folder.glob("*.json"))}
    return [
        path
        for path, document in documents.items()
        if document["kind"] == "hyperseg-ops" and preference.operator_rows(document)
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


def result(*rows: tuple[str, str, str, list[float]]) -> dict:
    """A document with rows (operator, call, backend, milliseconds of each round)."""
    made = [
        {
            "operator": operator,
            "call": call,
            "backend": backend,
            "times": 2 if call == "twice" else 1,
            "arguments": [],
            "raw": {"window_ms": [4 * ms for ms in rounds], "window_images": [4] * len(rounds)},
        }
        for operator, call, backend, rounds in rows
    ]
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "hyperseg-ops",
        "environment": {"device": {"type": "cpu"}},
        "arguments": {"dtype": "float32"},
        "models": [{"name": "m", "rows": made}],
    }


@pytest.fixture(autouse=True)
def cpp_first(monkeypatch):
    monkeypatch.setitem(table.PREFERENCE, "cpu", ("cpp", "triton", "reference"))
    monkeypatch.setattr(table, "EXCEPTIONS", {})


def test_all_calls_count_as_often_as_they_are_made():
    document = result(
        ("patch_conv2d", "once", "reference", [5.0, 5.0]),
        ("patch_conv2d", "once", "cpp", [1.0, 1.5]),
        ("patch_conv2d", "twice", "reference", [1.0, 1.0]),
        ("patch_conv2d", "twice", "cpp", [2.0, 2.0]),
        ("patch_conv2d", "only the reference", "reference", [100.0, 100.0]),
        ("decoder", "all levels", "reference", [1.0, 1.0]),
        ("decoder", "all levels", "cpp", [9.0, 9.0]),
    )
    (verdict,) = preference.verdicts(document)
    assert verdict.rounds == {"reference": [7.0, 7.0], "cpp": [5.0, 5.5]}
    assert verdict.agrees


def test_a_slower_choice_disagrees_and_the_line_for_it_settles_it(tmp_path, capsys, monkeypatch):
    path = tmp_path / "ops.json"
    write_json(path, result(("patch_conv2d", "a", "reference", [1.0, 1.1]), ("patch_conv2d", "a", "cpp", [2.0, 1.9])))
    assert preference.main([str(path)]) == 2
    out = capsys.readouterr().out
    assert "DISAGREES: reference was faster in every round" in out
    line = out.strip().splitlines()[-1]
    assert line.strip() == '("cpu", "patch_conv2d"): ("reference",),'
    monkeypatch.setattr(table, "EXCEPTIONS", eval(f"{{{line}}}"))
    assert table.order("patch_conv2d", "cpu") == ("reference",)
    assert preference.main([str(path)]) == 0


def test_what_one_round_contradicts_decides_nothing():
    document = result(("patch_conv2d", "a", "reference", [1.0, 1.1]), ("patch_conv2d", "a", "cpp", [2.0, 1.0]))
    assert preference.verdicts(document)[0].agrees


def test_a_backend_that_was_not_measured_keeps_its_place():
    document = result(
        ("patch_conv2d", "a", "reference", [9.0]),
        ("patch_conv2d", "a", "cpp", [2.0]),
        ("patch_conv2d", "a", "new", [1.0]),
    )
    (verdict,) = preference.verdicts(document)
    assert not verdict.agrees
    assert verdict.line.strip() == '("cpu", "patch_conv2d"): ("new", "cpp", "triton", "reference"),'


@pytest.mark.parametrize(
    ("text", "sentence"),
    [(None, "cannot be read"), ("{}", "schema version"), (f'{{"schema_version": {SCHEMA_VERSION}}}', "no result of")],
)
def test_mistakes_are_answered_in_a_sentence(tmp_path, capsys, text, sentence):
    path = tmp_path / "x.json"
    if text is not None:
        path.write_text(text)
    assert preference.main([str(path)]) == 1
    assert sentence in capsys.readouterr().err


def test_the_decoder_as_a_whole_is_passed_over(tmp_path, capsys):
    """It is no operator: a file of it alone neither fails nor hides those beside it."""
    whole, operators = tmp_path / "decoder.json", tmp_path / "operators.json"
    write_json(whole, result(("decoder", "all levels", "reference", [1.0]), ("decoder", "all levels", "cpp", [9.0])))
    write_json(operators, result(("patch_conv2d", "a", "reference", [9.0]), ("patch_conv2d", "a", "cpp", [2.0])))
    assert comparable(tmp_path) == [operators]
    assert preference.main([str(whole), str(operators)]) == 0
    assert "agrees" in capsys.readouterr().out


def test_nothing_to_compare_is_said(tmp_path, capsys):
    path = tmp_path / "x.json"
    write_json(path, result(("patch_conv2d", "a", "reference", [1.0])))
    assert preference.main([str(path)]) == 1
    assert "nothing to compare" in capsys.readouterr().out
