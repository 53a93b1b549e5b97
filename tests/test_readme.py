"""The README's Python blocks run unchanged and in order, in one namespace; its commands are valid, its files exist."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from hyperseg.cli import build_parser

README = Path(__file__).parents[1] / "README.md"
BLOCK = re.compile(r"^(?:<!-- needs (?P<needs>.+?) -->\n)?```python\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE)
AVAILABLE = {None: True, "a GPU": torch.cuda.is_available()}


def test_the_blocks_run_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text, names = README.read_text(), {}
    blocks = list(BLOCK.finditer(text))
    assert len(blocks) == text.count("```python") > 0
    for block in blocks:
        # Newlines before the code, so that an error names the line of the README.
        source = "\n" * text.count("\n", 0, block.start("code")) + block["code"]
        code = compile(source, str(README), "exec")
        if AVAILABLE[block["needs"]]:
            exec(code, names)
    assert names["labels"].dtype == torch.uint8
    assert (tmp_path / "my-network").is_dir()


def test_at_least_two_blocks_run_everywhere():
    assert [block["needs"] for block in BLOCK.finditer(README.read_text())].count(None) >= 2


def commands() -> list[str]:
    """The `hyperseg` commands in code blocks, without comments, and those in the text."""
    text = README.read_text()
    blocks = re.findall(r"^    (hyperseg .+?)(?:  +#.*)?$", text, re.MULTILINE)
    return blocks + [" ".join(found.split()) for found in re.findall(r"`(hyperseg [a-z]+[ \n][^`]+)`", text)]


@pytest.mark.parametrize("command", [command for command in commands() if not command.endswith("--help")])
def test_commands_are_valid(command):
    args = build_parser().parse_args(shlex.split(command)[1:])
    assert callable(args.run)


def test_there_are_commands():
    verbs = {command.split()[1] for command in commands()}
    assert {"predict", "eval", "data", "info"} <= verbs


def test_files_that_are_linked_exist():
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README.read_text())
    assert len(links) > 5
    assert [link for link in links if not (README.parent / link).exists()] == []
