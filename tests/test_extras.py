"""Extras: each that a message or a document names exists, and a missing package is named by its extra."""

import ast
import re
from pathlib import Path

import pytest

from hyperseg._extras import MissingPackageError, require

try:
    import tomllib
except ImportError:  # Python 3.10, where pytest needs tomli; after an import of pip's copy setuptools fails to import
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").is_file(), reason="these tests are about a source checkout")


def extras() -> dict[str, list[str]]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def named() -> set[tuple[str, str]]:
    """Each file that names an extra, with the extra."""
    found = set()
    files = [path for folder in ("hyperseg", "bench", "tools", "docs") for path in (ROOT / folder).rglob("*.*")]
    for path in [*files, *ROOT.glob("*.md")]:
        if path.suffix not in (".py", ".md"):
            continue
        place, text = str(path.relative_to(ROOT)), path.read_text()
        for names in re.findall(r"(?:hyperseg|\.)\[([a-z0-9,]+)\]", text):
            found |= {(place, name) for name in names.split(",")}
        if path.suffix == ".py":
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "require":
                    assert isinstance(node.args[1], ast.Constant), f"{place}: the extra is not a word"
                    found.add((place, node.args[1].value))
    return found


def test_extras_that_are_named_exist():
    found = named()
    assert {"lite0", "onnx", "peers", "plot", "ray", "video", "webcam"} <= {name for _, name in found}
    assert [(place, name) for place, name in sorted(found) if name not in extras()] == []


def test_all_has_every_extra_of_users():
    (everything,) = extras()["all"]
    names = set(re.fullmatch(r"hyperseg\[(.+)\]", everything)[1].split(","))
    assert names == set(extras()) - {"all", "dev", "peers", "rivals"}


def test_a_missing_package_is_named_by_its_extra():
    with pytest.raises(MissingPackageError) as raised:
        require("no_such_package.part", "plot", "a plot")
    assert str(raised.value) == "a plot needs no_such_package; run pip install 'hyperseg[plot]'"


def test_a_plot_names_its_extra(monkeypatch, tmp_path):
    from hyperseg.training import pictures

    monkeypatch.setattr(pictures, "require", lambda module, *others: require("absent_" + module, *others))
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 1.0, "labelled": 1, "lr": 0.1}\n')
    with pytest.raises(MissingPackageError, match=r"needs absent_matplotlib.*; run pip install 'hyperseg\[plot\]'"):
        pictures.plot(tmp_path)
