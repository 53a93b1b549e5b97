"""Imports run one way: no circles, and no package imports one above it (CONTRIBUTING, Where things are)."""

import ast
import graphlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("hyperseg", "kernels", "bench", "tools")

# A package may import packages on lines above its own.
LAYERS = [
    {"hyperseg", "hyperseg._distributed", "hyperseg._files", "hyperseg._machine", "hyperseg._text"},
    {"hyperseg._transfer", "hyperseg._downloads", "hyperseg._progress"},
    {"hyperseg.kernels"},
    {"hyperseg.ops"},
    {"hyperseg.models", "hyperseg.images", "hyperseg.verify", "hyperseg.info"},
    {"hyperseg.data"},
    {"hyperseg.runtime", "hyperseg.evaluation", "hyperseg.export"},
    {"hyperseg.predict", "hyperseg.training"},
    {"hyperseg.publish", "hyperseg.serve"},
    {"hyperseg.cli", "tools.machine", "tools.gate.binary", "tools.gate.capture"},
    {"hyperseg.__main__", "bench.core"},
    {"bench"},
    {"tools"},
]


def module(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    return f"hyperseg.{name}" if name.startswith("kernels") else name


MODULES = {module(path): path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}


def imports(name: str, typing: bool = False) -> set[str]:
    """The project's modules that a module imports, also inside functions; with ``typing`` under TYPE_CHECKING too."""
    found = set()
    tree = ast.parse(MODULES[name].read_text())
    for node in ast.walk(tree):
        if not typing and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from package import x` needs the package only for names that are not modules of their own.
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names & set(MODULES)
            found |= {node.module} if names - set(MODULES) else set()
    return found & set(MODULES) - {name}


def layer(name: str) -> int:
    """The line of the longest package name in LAYERS that the module belongs to."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        for line, packages in enumerate(LAYERS):
            if ".".join(parts[:end]) in packages:
                return line
    raise AssertionError(f"{name} belongs to no package in LAYERS; add it")


GRAPH = {name: imports(name) for name in MODULES}


def test_no_module_imports_itself_through_others():
    try:
        list(graphlib.TopologicalSorter(GRAPH).static_order())
    except graphlib.CycleError as error:
        pytest.fail(f"import circle: {' -> '.join(error.args[1])}")


def test_packages_import_only_packages_below():
    # `hyperseg` exports names of higher packages, imported on first use.
    upward = [f"{a} -> {b}" for a in MODULES for b in GRAPH[a] if layer(a) < layer(b) and a != "hyperseg"]
    assert not upward


def test_backends_do_not_import_each_other_or_the_definitions():
    """A backend that used the reference's code would be compared with itself."""
    backends = {name for name in MODULES if name.startswith("hyperseg.ops.backends.")}
    shared = {"hyperseg.ops.backends.backend", "hyperseg.ops.backends.native"}
    for name in backends - shared - {"hyperseg.ops.backends.dispatch"}:
        assert GRAPH[name] & backends <= shared
    users = backends | {name for name in MODULES if name.startswith("hyperseg.kernels")}
    assert [name for name in users if "hyperseg.ops.reference" in GRAPH[name]] == []


def test_threads_do_not_spin_for_long_unless_the_user_wants_that():
    code = "import os, hyperseg; print(os.environ.get('GOMP_SPINCOUNT'))"
    for mine, expected in (({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")):
        environment = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
        done = subprocess.run([sys.executable, "-c", code], env=environment | mine, capture_output=True, text=True)
        assert done.stdout.strip() == expected, done.stderr
