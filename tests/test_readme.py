"""The README's Python blocks run unchanged and in order, in one namespace."""

import re
from pathlib import Path

import torch

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
