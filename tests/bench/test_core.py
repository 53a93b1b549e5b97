"""bench/core: modules import only modules of the lines above their own."""

import ast
from pathlib import Path

from bench import core

LINES = [line.split(", ") for line in core.__doc__.strip().split("\n\n", 1)[1].splitlines()]


def imported(path: Path) -> set[str]:
    """Modules of bench/core that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "bench.core":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bench.core."):
            found.add(node.module.split(".")[2])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[2] for alias in node.names if alias.name.startswith("bench.core.")}
    return found


def test_imports_run_one_way():
    folder = Path(core.__file__).parent
    assert {path.stem for path in folder.glob("*.py")} == {"__init__", *(name for line in LINES for name in line)}
    above: set[str] = set()
    for line in LINES:
        for name in line:
            assert imported(folder / f"{name}.py") <= above, f"{name} imports its own line or one below"
        above |= set(line)
