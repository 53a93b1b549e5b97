"""Write docs/api.md: the signatures and docstrings of the public names.

    python -m tools.api            write it
    python -m tools.api --check    exit code 1 if it is not up to date

Signatures come from the source, not from the objects, so that the page does not depend on versions of Python and of
other packages. A name is public if the `__all__` of one of PACKAGES has it; it is described once, under the first.
"""

import argparse
import ast
import functools
import inspect
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[1] / "docs" / "api.md"
PACKAGES = (
    "hyperseg",
    "hyperseg.models",
    "hyperseg.runtime",
    "hyperseg.predict",
    "hyperseg.data",
    "hyperseg.evaluation",
    "hyperseg.training",
    "hyperseg.export",
    "hyperseg.publish",
    "hyperseg.ops",
)
_HEAD = """# API reference

The public names of each package, with their signatures and docstrings. `python -m tools.api` writes this page from the
source; a test compares them. Sizes are (height, width), maps are `[N, C, H, W]`.
"""
_SECTIONS = ("Args:", "Attributes:", "Returns:", "Yields:", "Raises:")
_WIDTH = 100  # of a signature, in characters


def render() -> str:
    """Return the page."""
    done: dict[int, str] = {}
    parts = [_HEAD]
    for package in PACKAGES:
        module = import_module(package)
        parts.append(f"\n## {package}\n\n{text(module.__doc__ or '')}\n")
        repeated: dict[str, list[str]] = {}
        for name in sorted(module.__all__, key=str.lower):
            value = getattr(module, name)
            if name == "__version__":
                continue
            described = inspect.isclass(value) or inspect.isfunction(value)
            if described and id(value) in done:
                first = done[id(value)]
                repeated.setdefault(first, []).append(f"`{name}`")
                continue
            if described:
                done[id(value)] = package
                parts.append(entry(name, value))
            else:
                parts.append(f"\n### {name}\n\n{constant(value)}\n")
        for first, names in repeated.items():
            parts.append(f"\nAlso here, described under `{first}`: {', '.join(names)}.\n")
    return "".join(parts)


def entry(name: str, value: Any) -> str:
    """Return the text about a class or a function."""
    value = inspect.unwrap(value)
    node = definition(value)
    if isinstance(node, ast.ClassDef):
        return f"\n### {name}\n\n{fence(class_lines(name, node))}\n{text(value.__doc__ or '')}\n{methods(node)}"
    return f"\n### {name}\n\n{fence([function_line(name, node)])}\n{text(value.__doc__ or '')}\n"


def constant(value: Any) -> str:
    """Return the text about a public name that is neither a class nor a function."""
    kind = type(value)
    what = f"`{kind.__name__}`" if kind.__module__ == "builtins" else f"A `{kind.__name__}`"
    if isinstance(value, tuple) and all(isinstance(each, int) for each in value):
        return f"{what}: `{value}`."
    if isinstance(value, dict | list):
        return f"{what} of " + ", ".join(f"`{key}`" for key in value) + "."
    if (names := getattr(value, "classes", None)) is not None:
        return f"{what} of {len(names)} classes: {', '.join(names)}."
    return f"{what}."


def definition(value: Any) -> ast.ClassDef | ast.FunctionDef:
    """Return the statement that defines a class or a function."""
    nodes = _definitions(inspect.getsourcefile(value) or "")
    return nodes[value.__qualname__]


def source(node: ast.AST) -> str:
    """Return the source of a part of a signature, written as by Python 3.11; 3.10 leaves a space in ``lambda :``."""
    return ast.unparse(node).replace("lambda :", "lambda:")


@functools.cache
def _definitions(path: str) -> dict[str, Any]:
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name: node for node in ast.parse(Path(path).read_text()).body if isinstance(node, kinds)}


def class_lines(name: str, node: ast.ClassDef) -> list[str]:
    """Return the constructor of a class, or its fields if it has none of its own."""
    bases = [source(base) for base in node.bases if source(base) != "object"]
    lines = [f"class {name}({', '.join(bases)})" if bases else f"class {name}"]
    for part in node.body:
        if isinstance(part, ast.FunctionDef) and part.name == "__init__":
            return [*lines, function_line(name, part, method=True).partition(" -> ")[0]]
    fields = [part for part in node.body if isinstance(part, ast.AnnAssign) and source(part.target)[0] != "_"]
    return lines + [f"    {source(field)}" for field in fields]


def methods(node: ast.ClassDef) -> str:
    """Return the list of a class's public methods and properties."""
    found = []
    for part in node.body:
        if not isinstance(part, ast.FunctionDef) or (part.name[0] == "_" and part.name != "__call__"):
            continue
        doc = text(ast.get_docstring(part) or "").partition("\n\n")[0]
        decorators = {source(each) for each in part.decorator_list}
        is_value = bool(decorators & {"property", "functools.cached_property"})
        signature = part.name if is_value else function_line(part.name, part, method=True, wide=True)
        found.append(f"- `{signature}`: {' '.join(doc.split())}" if doc else f"- `{signature}`")
    return "\n" + "\n".join(found) + "\n" if found else ""


def function_line(name: str, node: ast.FunctionDef, method: bool = False, wide: bool = False) -> str:
    """Return a signature, on one line, or with an argument per line if it is long."""
    arguments = _without_self(node.args) if method else node.args
    returns = f" -> {source(node.returns)}" if node.returns else ""
    line = f"{name}({source(arguments)}){returns}"
    if wide or len(line) <= _WIDTH:
        return line
    return f"{name}(\n    " + ",\n    ".join(_each(arguments)) + f",\n){returns}"


def _without_self(arguments: ast.arguments) -> ast.arguments:
    rest = [each for each in arguments.args if each.arg not in ("self", "cls")]
    return ast.arguments(
        posonlyargs=arguments.posonlyargs,
        args=rest,
        vararg=arguments.vararg,
        kwonlyargs=arguments.kwonlyargs,
        kw_defaults=arguments.kw_defaults,
        kwarg=arguments.kwarg,
        defaults=arguments.defaults,
    )


def _each(arguments: ast.arguments) -> Iterator[str]:
    """Yield each argument with its annotation and default."""
    positional = [*arguments.posonlyargs, *arguments.args]
    missing: list[Any] = [None] * (len(positional) - len(arguments.defaults))
    for argument, default in zip(positional, missing + arguments.defaults, strict=True):
        yield _argument(argument, default)
    if arguments.vararg:
        yield f"*{source(arguments.vararg)}"
    elif arguments.kwonlyargs:
        yield "*"
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        yield _argument(argument, default)
    if arguments.kwarg:
        yield f"**{source(arguments.kwarg)}"


def _argument(argument: ast.arg, default: ast.expr | None) -> str:
    text = source(argument)
    return text if default is None else f"{text} = {source(default)}"


def fence(lines: list[str]) -> str:
    """Return lines as a block of code. It is no Python that could run, so the block names no language."""
    return "```text\n" + "\n".join(lines) + "\n```\n"


def text(docstring: str) -> str:
    """Return a docstring in Markdown: its sections as lists, its references as code."""
    docstring = re.sub(r":(?:func|class|meth|mod|attr):`~?([^`]+)`", r"`\1`", inspect.cleandoc(docstring))
    docstring = docstring.replace("``", "`")
    lines: list[str] = []
    section = False
    for line in docstring.splitlines():
        if line.strip() in _SECTIONS and line == line.strip():
            section = True
            lines += [f"*{line.removesuffix(':')}*", ""]
        elif not section or not line.strip():
            lines.append(line)
        elif line[0] != " ":
            section = False
            lines.append(line)
        elif _begins_item(line):
            lines.append("- " + line.strip())
        else:
            lines.append("  " + line[8:])  # the item goes on
    return "\n".join(lines).strip()


def _begins_item(line: str) -> bool:
    """Return whether a line of a section begins an argument or an error: four spaces, then no other one."""
    return re.match(r" {4}\S", line) is not None


def main(argv: list[str] | None = None) -> int:
    """Write or check the page; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.api", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if the page is not up to date")
    args = parser.parse_args(argv)
    page = render()
    if args.check:
        if PAGE.read_text() == page:
            return 0
        print("docs/api.md is not up to date: run python -m tools.api", file=sys.stderr)
        return 1
    PAGE.write_text(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
