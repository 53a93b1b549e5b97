"""README and docs/: what they say is run, or at least parsed by the parser of the command.

- Python blocks of a page run unchanged and in order, in one namespace.
- Blocks of the kind `console` run too: their lines after `$ ` in order, and the lines that follow are the output, in
  which `...` stands for any text, as in doctest. `<!-- tests add: OPTIONS -->` before a block makes commands short.
- Every other command in a block, and every `hyperseg` command in the text, is parsed.
- Links and pictures exist, and so do the headings that links name.

Pages run in a folder that has the files of `files`.
"""

import argparse
import contextlib
import copy
import doctest
import importlib.util
import io
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from hyperseg import cli
from hyperseg.data import open_dataset
from hyperseg.data.writing import write_folder
from hyperseg.models import VARIANTS, create_model, save_official, synthesize_weights
from hyperseg.ops import BACKENDS, _registry
from hyperseg.ops.backends import reference
from hyperseg.training import load_recipe
from tools import api, drawings

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"
SLOW = ("docs/own-data.md",)  # it trains a network
# Pages whose blocks need a server or a package that is not always there, and the tests that run them.
ELSEWHERE = {"docs/serving.md": "tests/serve/test_documents.py", "docs/scaling.md": "tests/predict/test_ray.py"}

COMMENTS = r"(?:^<!-- (?P<kind>needs|tests add:) (?P<what>.+?) -->\n\n?)?"
BLOCK = re.compile(COMMENTS + r"^```python\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE)
CONSOLE = re.compile(COMMENTS + r"^```console\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
OURS = re.compile(
    r"(?:time |[A-Z_]+=\S* )*"
    r"(?:hyperseg \w|make |torchrun |python (?:bench/|setup.py|-m (?:hyperseg|tools|tests|pytest)))"
)
HAS_VIDEO = importlib.util.find_spec("av") is not None
HAS_ONNX = all(map(importlib.util.find_spec, ("onnx", "onnxruntime", "onnxscript")))
# Packages take a minute to make: tests/export/test_aoti.py loads one.
AVAILABLE = {"a GPU": torch.cuda.is_available(), "ONNX": HAS_ONNX, "a package": False}


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def pages(having: re.Pattern[str]):
    found = [page for page in PAGES if having.search(page.read_text()) and name_of(page) not in ELSEWHERE]
    return [pytest.param(page, id=name_of(page), marks=marks(page, having)) for page in found]


def marks(page: Path, having: re.Pattern[str]):
    if name_of(page) == "docs/video.md":
        return pytest.mark.skipif(not HAS_VIDEO, reason="needs PyAV")
    return pytest.mark.slow if name_of(page) in SLOW and having is CONSOLE else ()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with street.png, street.mp4, a folder of photos, and the data set `mine`."""
    folder = tmp_path_factory.mktemp("files")
    image, _ = open_dataset("synthetic", None, "val", images=1, size=(96, 128)).sample(0)
    for name in ("street.png", "photos/one.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(folder / name)
    if HAS_VIDEO:
        from tests.predict.videos import write_video

        write_video(folder / "street.mp4", frames=2)
    splits = [open_dataset("synthetic", None, split, images=3, size=(64, 128)) for split in ("train", "val")]
    write_folder(splits, folder / "mine")
    return folder


@pytest.fixture
def workplace(files, tmp_path, monkeypatch):
    """The current folder: a copy of `files`."""
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYPERSEG_VERIFY", "0")
    return tmp_path


@pytest.fixture
def registries():
    """The registries that docs/extending.md adds to, as they were."""
    tables = (VARIANTS, BACKENDS, reference.SUPPORTED, _registry.OPERATORS)
    before = [copy.copy(table) for table in tables]
    yield
    for table, copied in zip(tables, before, strict=True):
        table.clear()
        table.update(copied) if isinstance(table, dict) else table.extend(copied)


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A cache folder with a file in place of the released weights of HyperSeg-M, as a user may put it there."""
    folder = tmp_path_factory.mktemp("cache")
    (folder / "weights").mkdir()
    model = synthesize_weights(create_model("hyperseg-m-cityscapes"))
    save_official(model, folder / "weights" / "cityscapes_efficientnet_b1_hyperseg-m.pth")
    return folder


# ---------------------------------------------------------------------------------------------------------------------
# Python


@pytest.mark.parametrize("page", pages(BLOCK))
@pytest.mark.usefixtures("registries")
def test_python_blocks_run_in_order(page, workplace):
    text, names = page.read_text(), {}
    made = workplace / "scenes" / "images" / "val" / "val_0_000000.png"  # by a command of the quick start
    made.parent.mkdir(parents=True)
    shutil.copy(workplace / "street.png", made)
    blocks = list(BLOCK.finditer(text))
    assert len(blocks) == text.count("```python")
    for block in blocks:
        # Newlines before the code, so that an error names the line of the page.
        source = "\n" * text.count("\n", 0, block.start("code")) + block["code"]
        code = compile(source, str(page), "exec")
        if block["kind"] is None or AVAILABLE[block["what"]]:
            exec(code, names)
    if page == README:
        assert names["labels"].dtype == torch.uint8
        assert (workplace / "my-network").is_dir()


def test_at_least_two_blocks_of_the_readme_run_everywhere():
    assert [block["kind"] for block in BLOCK.finditer(README.read_text())].count(None) >= 2


def test_the_notebook_runs_from_top_to_bottom(workplace):
    names = {"__name__": "__main__"}
    for number, cell in enumerate(json.loads(NOTEBOOK.read_text())["cells"]):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"cell {number} of {NOTEBOOK.name}", "exec"), names)
    assert names["labels"].shape == names["image"].shape[:2]


def test_the_notebook_is_small():
    assert NOTEBOOK.stat().st_size < 200_000


# ---------------------------------------------------------------------------------------------------------------------
# Commands


@pytest.mark.parametrize("page", pages(CONSOLE))
def test_console_blocks_print_what_they_show(page, workplace, released, monkeypatch):
    monkeypatch.setenv("HYPERSEG_CACHE", str(released))
    checker = doctest.OutputChecker()
    for block in CONSOLE.finditer(page.read_text()):
        more = shlex.split(block["what"] or "")
        for step in re.split(r"^\$ ", block["code"], flags=re.MULTILINE)[1:]:
            line, _, expected = step.replace("\\\n", " ").partition("\n")
            program, *argv = shlex.split(line, comments=True)
            assert program == "hyperseg", line
            code, printed = run(argv + more)
            assert code == 0, f"{line}\n{printed}"
            if not checker.check_output(expected, printed, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE):
                pytest.fail(f"{line}\nshown:\n{expected}\nprinted:\n{printed}")


def run(argv: list[str]) -> tuple[int, str]:
    """Run a hyperseg command; return its exit code and all that it prints."""
    with io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) as stream:
        with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
            code = cli.main(argv)
        stream.flush()
        return code, stream.buffer.getvalue().decode()


def lines_of_blocks(text: str) -> list[str]:
    """Return the lines of the code blocks that are no Python, a command that goes on in the next line as one."""
    blocks = FENCE.findall(text)
    fenced = [block for kind, block in blocks if kind in ("", "sh", "bash")]
    consoles = "".join(block for kind, block in blocks if kind == "console")
    fenced += re.findall(r"^\$ (?:.*\\\n)*.*\n", consoles, re.MULTILINE)
    indented = re.findall(r"(?:^(?: {4}.*)?\n)+", FENCE.sub("", text), re.MULTILINE)
    joined = "\n".join([*fenced, *indented]).replace("\\\n", " ")
    return [line.strip().removeprefix("$ ") for line in joined.splitlines()]


def commands(page: Path) -> list[str]:
    """Return the commands of this project in the blocks of a page."""
    lines = [part.strip() for line in lines_of_blocks(page.read_text()) for part in line.split(" && ")]
    return [line for line in lines if OURS.match(line) and "--help" not in line]


def mentions(page: Path) -> list[str]:
    """Return the `hyperseg` commands in the text of a page."""
    found = re.findall(r"`(hyperseg [a-z]+[ \n][^`]+)`", page.read_text())
    return [" ".join(command.split()) for command in found if "--help" not in command]


ALL = [(page, command) for page in PAGES for command in dict.fromkeys(commands(page))]
MENTIONED = [(page, command) for page in PAGES for command in dict.fromkeys(mentions(page))]


class Parsed(Exception):
    """The command line is valid."""


@pytest.mark.parametrize(("page", "command"), ALL, ids=[f"{page.name}: {command}" for page, command in ALL])
def test_commands_are_valid(page, command, monkeypatch):
    words = shlex.split(command.replace(" ...", ""), comments=True)
    for end in ("|", ">", "&"):
        words = words[: words.index(end)] if end in words else words
    while words[0] == "time" or re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    program, *argv = words
    if program == "make":
        check_make(argv)
    elif program == "torchrun":
        check_hyperseg(argv[argv.index("hyperseg") + 1 :])
    elif program == "hyperseg":
        check_hyperseg(argv)
    elif argv[0] == "setup.py":
        assert argv[1] == "build_ext"
    elif argv[0] == "-m" and argv[1] == "hyperseg":
        check_hyperseg(argv[2:])
    else:
        module, rest = (argv[1], argv[2:]) if argv[0] == "-m" else (argv[0][:-3].replace("/", "."), argv[1:])
        assert importlib.util.find_spec(module) is not None
        if module.startswith(("bench.", "tools.")):
            check_main(module, rest, monkeypatch)


@pytest.mark.parametrize(("page", "command"), MENTIONED, ids=[f"{page.name}: {command}" for page, command in MENTIONED])
def test_commands_in_the_text_are_valid(page, command):
    try:
        check_hyperseg(shlex.split(command.replace(" ...", ""))[1:])
    except cli._common.UsageError as error:  # the text may name an option alone, as in `hyperseg predict --show`
        if not re.search("are required|expected (one|at least one) argument", str(error)):
            raise


def check_hyperseg(argv: list[str]) -> None:
    assert callable(cli.build_parser().parse_args(argv).run)


def check_make(argv: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for word in argv:
        name, equals, _ = word.partition("=")
        assert re.search(rf"^{name} \?=" if equals else rf"^{name}:.*##", makefile, re.MULTILINE), word


def check_main(module: str, argv: list[str], monkeypatch) -> None:
    """Have the `main` of a file parse its arguments, and no more."""
    parse = argparse.ArgumentParser.parse_args

    def parse_only(self, *args, **kwargs):
        parse(self, *args, **kwargs)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    with pytest.raises(Parsed):
        importlib.import_module(module).main(argv)


def test_settings_are_those_of_recipes():
    settings = {found for page in PAGES for found in re.findall(r"--set ([a-z_.]+=[^\s`]+)", page.read_text())}
    assert len(settings) > 20
    for setting in sorted(settings):
        load_recipe("folder", [setting])


def test_the_readme_shows_the_verbs():
    verbs = {command.split()[1] for command in commands(README) if command.startswith("hyperseg ")}
    assert {"predict", "eval", "data", "train"} <= verbs


def test_packages_that_are_installed_are_extras():
    extras = (ROOT / "pyproject.toml").read_text()
    for page in PAGES:
        for names in re.findall(r"pip install [^\n`]*?(?:hyperseg|\.)\[([a-z0-9,]+)\]", page.read_text()):
            for name in names.split(","):
                assert re.search(rf"^{name} = \[", extras, re.MULTILINE), f"{page.name}: {name}"


# ---------------------------------------------------------------------------------------------------------------------
# Links, pictures, reference


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [pytest.param(page, id=name_of(page)) for page in PAGES])
def test_links_lead_somewhere(page):
    text = FENCE.sub("", page.read_text())
    for link in re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or target.suffix != ".md" or anchor in anchors(target), link


def test_the_index_has_every_page():
    index = ROOT / "docs" / "README.md"
    linked = {(index.parent / link).resolve() for link in re.findall(r"\]\(([^)#\s]+)\)", index.read_text())}
    assert [name_of(page) for page in PAGES if page not in {README, index} and page not in linked] == []
    assert NOTEBOOK in linked


def test_the_reference_is_up_to_date():
    assert api.PAGE.read_text() == api.render(), "run python -m tools.api"


def test_the_drawings_are_up_to_date():
    for path, content in drawings.render().items():
        assert path.read_text() == content, f"{path.name}: run python -m tools.drawings"
