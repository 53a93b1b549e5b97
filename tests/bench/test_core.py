"""bench/core: modules import only modules of the lines above their own."""

from pathlib import Path

from bench import core
from tests.test_imports import imports

LINES = [line.split(", ") for line in core.__doc__.strip().split("\n\n", 1)[1].splitlines()]


def test_imports_run_one_way():
    folder = Path(core.__file__).parent
    assert {path.stem for path in folder.glob("*.py")} == {"__init__", *(name for line in LINES for name in line)}
    above: set[str] = set()
    for line in LINES:
        for name in line:
            found = {
                module for module in imports(f"bench.core.{name}", typing=True) if module.startswith("bench.core.")
            }
            assert found <= above, f"{name} imports its own line or one below"
        above |= {f"bench.core.{name}" for name in line}
