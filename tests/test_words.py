"""The check of the project's language reads its glossary and reports words inside identifiers too."""

import pytest

from tools import words

RULES = words.glossary(words.GLOSSARY.read_text())


def found(text: str) -> list[str]:
    return [finding.word for finding in words.check("file.py", text, RULES)]


def test_the_glossary_has_a_replacement_for_each_word():
    assert len(RULES) >= 20
    assert all(rule.instead for rule in RULES)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("the answer of a call", "answer"),
        ("labels_answered = 1", "answered"),
        ("class Sentence:", "Sentence"),
        ("norms come behind it", "behind"),
        ("kernels of half types", "half types"),
        ("HYPERSEG_ANYWHERE void f()", "HYPERSEG_ANYWHERE"),
    ],
)
def test_banned_words_are_reported(text, word):
    assert found(text) == [word]


def test_longer_words_and_other_meanings_pass():
    assert found("unanswerable; a web server; broom, classroom; relies on, implies, families; halves the map") == []


def test_the_command_reports_file_and_line(tmp_path, capsys):
    path = tmp_path / "a.py"
    path.write_text("x = 1\n# an answer\n")
    assert words.main([str(path)]) == 1
    assert capsys.readouterr().out == f"{path}:2: 'answer': write output, result; returns, matches\n"
    path.write_text("x = 1\n")
    assert words.main([str(path)]) == 0
