"""The `hyperseg` command without the work of its verbs: help, start-up, errors."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import hyperseg
from hyperseg.cli import VERBS, build_parser, main

ROOT = Path(hyperseg.__file__).parent.parent


def test_help_of_predict(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["predict", "--help"])
    assert exit.value.code == 0
    text = capsys.readouterr().out
    for words in ("--no-overlay", "--overlay-format {png,jpg}", "opacity of the colours", "(default: predictions)"):
        assert words in text


def test_no_arguments_print_the_help(capsys):
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert all(verb in err for verb in VERBS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["walk"], "hyperseg: error: argument VERB: invalid choice: 'walk'"),
        (["--fast"], "hyperseg: error: the following arguments are required: VERB (see hyperseg --help)"),
        (
            ["data", "show", "--count"],
            "hyperseg data: error: argument --count: expected one argument (see hyperseg data show",
        ),
        (["data", "walk"], "hyperseg data: error: argument ACTION: invalid choice: 'walk'"),
        (["info", "more"], "hyperseg info: error: unrecognized arguments: more (see hyperseg info --help)"),
    ],
)
def test_invalid_command_lines(capsys, arguments, message):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith(message)


def test_every_option_is_explained():
    (verbs,) = (action.choices for action in build_parser()._actions if action.dest == "verb")
    assert tuple(verbs) == VERBS
    for name, parser in verbs.items():
        assert parser.description == importlib.import_module(f"hyperseg.cli.{name}").__doc__.strip()
        for action in parser._actions:
            assert action.help, f"{name} {action.dest}"


def test_importing_the_cli_loads_no_torch():
    script = "import sys, hyperseg.cli, hyperseg.cli.predict; sys.exit('torch' in sys.modules or 'PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0


def test_version(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"hyperseg {hyperseg.__version__}\n"


def test_the_reader_of_a_report_may_leave(monkeypatch, capsys):
    """As in `python -m hyperseg.info | head -1`."""
    from hyperseg import info

    def leave():
        raise BrokenPipeError

    ends = []
    monkeypatch.setattr(info, "main", leave)
    monkeypatch.setattr(os, "dup2", lambda *descriptors: ends.append(descriptors))
    monkeypatch.setattr(sys.stdout, "fileno", lambda: 1, raising=False)
    assert info._command() == 1
    assert [to for _, to in ends] == [1]


def test_a_missing_file_is_found_without_torch(tmp_path):
    """Sources, sizes, names of networks and outputs are checked before the imports that take seconds."""
    script = (
        "import sys; from hyperseg.cli import main; "
        "code = main(['predict', 'stret.jpg', '--model', 'hyperseg-m', '--size', '512x1024']); "
        "print(code, [name for name in ('torch', 'timm') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "there is no file stret.jpg" in done.stderr
    assert done.stdout == "1 []\n"


def test_python_m():
    done = subprocess.run(
        [sys.executable, "-m", "hyperseg", "predict", "x.jpg", "--alpha", "2"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("hyperseg predict: error: argument --alpha: '2' is no number such as 0.6")


@pytest.mark.parametrize(("arguments", "code"), [(["info"], 0), (["walk"], 2), (["data", "check"], 2)])
def test_streams_that_are_closed(arguments, code, monkeypatch):
    """As after `>&- 2>&-`."""
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert main(arguments) == code


def test_info(capsys):
    assert main(["info"]) == 0
    assert "Backends" in capsys.readouterr().out


def test_info_fails_if_a_kernel_is_wrong(capsys, monkeypatch):
    import torch

    from hyperseg import info
    from hyperseg.ops.backends.verdicts import RIGHT, UNKNOWN, WRONG, Verdict
    from hyperseg.verify import Unavailable

    found = [Verdict("stem", "cpp", "float32", RIGHT, cases=2), Verdict("mbconv", "cpp", "float32", WRONG, "case wide")]
    monkeypatch.setattr(info, "verify_again", lambda device: found)
    monkeypatch.setattr(info, "devices", lambda: [torch.device("cpu")])
    assert main(["info", "--verify"]) == 1
    assert "mbconv " in (out := capsys.readouterr().out)
    assert "wrong: case wide" in out
    found[1] = Verdict("mbconv", "cpp", "float32", UNKNOWN, "no memory")
    assert main(["info", "--verify", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["verdicts"]["cpu"][1]["reason"] == "no memory"
    del found[1]
    assert main(["info", "--verify"]) == 0

    def unavailable(device):
        raise Unavailable("no child process can be started")

    monkeypatch.setattr(info, "verify_again", unavailable)
    assert main(["info", "--verify"]) == 1
    assert "They cannot be verified: no child process can be started." in capsys.readouterr().out
