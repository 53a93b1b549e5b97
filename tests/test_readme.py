"""The README's Python runs as it stands there, each block after those before it."""

import re
from pathlib import Path

import torch

README = Path(__file__).parents[1] / "README.md"
BLOCK = re.compile(r"^(?:<!-- needs (?P<needs>.+?) -->\n)?```python\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE)
AT_HAND = {None: True, "a GPU": torch.cuda.is_available()}


def test_the_blocks_run_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text, names = README.read_text(), {}
    blocks = list(BLOCK.finditer(text))
    assert len(blocks) == text.count("```python") > 0
    for block in blocks:
        # Lines in front, so that an error names the line of the README.
        source = "\n" * text.count("\n", 0, block.start("code")) + block["code"]
        code = compile(source, str(README), "exec")
        if AT_HAND[block["needs"]]:
            exec(code, names)
    assert names["labels"].dtype == torch.uint8
    assert (tmp_path / "my-network").is_dir()


def test_few_blocks_are_left_out():
    assert [block["needs"] for block in BLOCK.finditer(README.read_text())].count(None) >= 2
