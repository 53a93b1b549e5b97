"""docs/serving.md: its Python block runs, its commands are valid, its statuses are those of the code."""

import re
import shlex
from http import HTTPStatus
from pathlib import Path

import numpy as np

from hyperseg.cli import build_parser
from tests.serve.serving import as_file, painted

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/serving.md").read_text()


def test_the_python_block_runs(site, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image, labels = painted()
    (tmp_path / "street.jpg").write_bytes(as_file(image, "JPEG", quality=100, subsampling=0))
    (block,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    names: dict = {}
    exec(block.replace("http://127.0.0.1:8000/api/segment", f"{site.url}/api/segment?size=native"), names)
    assert (names["labels"] != labels).mean() < 0.02
    assert names["labels"].dtype == np.uint8


def test_the_commands_are_valid():
    commands = re.findall(r"hyperseg serve --[^\n`]+", TEXT)
    assert len(commands) >= 3
    for command in commands:
        if not command.endswith("--help"):
            assert callable(build_parser().parse_args(shlex.split(command)[1:]).run)


def test_the_options_exist():
    arguments = set(re.findall(r"`(--[a-z-]+)", TEXT))
    known = build_parser().parse_args(["serve"])
    assert [option for option in arguments - {"--help"} if not hasattr(known, option[2:].replace("-", "_"))] == []


def test_the_statuses_are_those_of_the_code():
    code = "".join(path.read_text() for path in (ROOT / "hyperseg/serve").glob("*.py"))
    raised = {int(status) for status in re.findall(r"RequestError\(\s*(\d{3}),", code)}
    listed = {
        int(status) for row in re.findall(r"^\| (\d[\d, ]+) \|", TEXT, re.MULTILINE) for status in row.split(", ")
    }
    assert listed <= raised
    # What a browser or a library never sees, and faults of the server.
    assert raised - listed == {405, 414, 431, 500}
    assert all(HTTPStatus(status) for status in raised)
