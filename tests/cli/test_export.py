"""`hyperseg export`: files, output, exit codes, and errors that say what to do."""

import errno
import json
import os

import numpy as np
import pytest
from PIL import Image

import hyperseg
from hyperseg.cli import main
from hyperseg.export.sidecar import read_sidecar
from hyperseg.models import synthesize_weights
from tests.export.packages import needs_onnx


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder with a network that is quick to export."""
    network = synthesize_weights(hyperseg.create_model("hyperseg-s-camvid", encoder="test_efficientnet").eval())
    return str(hyperseg.save(network, tmp_path_factory.mktemp("weights")))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def error_of(capsys, *argv, code=1):
    """Run a command that must fail; return its only line on stderr. Nothing may be written."""
    before = sorted(os.listdir())
    assert main(["export", *map(str, argv)]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("hyperseg export: error: ")
    assert sorted(os.listdir()) == before
    return err


@needs_onnx
def test_onnx(here, weights, capsys):
    command = ["export", "onnx", "--weights", weights, "--size", "32x64", "--output", "net.onnx"]
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert err == ""
    first, *checks = out.splitlines()
    assert first.startswith("net.onnx (hyperseg-s-camvid at 32x64, any batch, float32, ")
    assert checks[0].startswith("  onnxruntime ")
    assert "batch 1: 100.000 % of labels agree, logits differ by " in checks[0]
    about = read_sidecar(here / "net.onnx")
    assert about["weights"]["source"] == weights
    assert sorted(os.listdir()) == ["net.onnx", "net.onnx.json"]
    again = error_of(capsys, *command[1:])
    assert again.endswith("--output: net.onnx exists; give another name, or overwrite=True (--overwrite)\n")


def test_pt2_at_the_published_resolution(here, weights, monkeypatch, capsys):
    def not_traced(network, options, *args):
        raise hyperseg.export.ExportError(f"{options}")

    monkeypatch.setattr("hyperseg.export.pt2.trace", not_traced)
    options = error_of(capsys, "pt2", "--weights", weights, "--output", "a.pt2", "--precision", "float16")
    assert "size=(576, 768), batch=None, returns='labels', precision='float16', device='cpu'" in options


def test_pt2(here, weights, capsys):
    command = ["export", "pt2", "--weights", weights, "--size", "32x64", "--batch", "1", "--output", "new/net.pt2"]
    assert main([*command, "--no-check"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["  not checked, as asked"]
    assert main([*command, "--overwrite"]) == 0
    assert "torch" in json.loads((here / "new" / "net.pt2.json").read_text())["checks"][0]["runtime"]


def test_random_weights_are_said(here, monkeypatch, capsys):
    monkeypatch.setattr("hyperseg.export.pt2.trace", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["export", "pt2", "--model", "hyperseg-s-camvid", "--output", "a.pt2"])
    assert "no --weights: hyperseg-s-camvid has random weights, so its labels mean nothing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["caffe"], 2, "argument FORMAT: invalid choice: 'caffe'"),
        (["onnx", "--output", ""], 2, "the value is empty"),
        (["onnx", "--size", "0x64"], 2, "--size: size '0x64' is not understood"),
        (["onnx", "--size", "native"], 2, "a program has one size; give HEIGHTxWIDTH or model"),
        (["onnx", "--batch", "0"], 2, "'0' is no whole number from 1"),
        (["onnx", "--precision", "bfloat16"], 2, "is not for onnx; give float32, float16, int8"),
        (["pt2", "--precision", "int8", "--calibrate", "x"], 2, "--calibrate is an option of onnx, not of pt2"),
        (["pt2", "--lowering", "conv"], 2, "--lowering is an option of onnx, not of pt2"),
        (["onnx", "--device", "cuda"], 2, "--device: a program of onnx is made for no device"),
        (["onnx", "--precision", "int8"], 2, "--precision int8 and --calibrate FOLDER go together"),
        (["onnx", "--calibrate", "images"], 2, "--precision int8 and --calibrate FOLDER go together"),
        (["onnx", "--lowering", "conv"], 2, "lowering 'conv' needs a fixed batch"),
        (["onnx", "--output", "."], 1, "--output: . is a folder; give the name of a file"),
        (["onnx", "--output", "file/net.onnx"], 1, "is a file; give a name in a folder"),
        (["onnx", "--output", "file"], 1, "file exists; give another name"),
        (["onnx", "--precision", "int8", "--calibrate", "none"], 1, "--calibrate: "),
        (["onnx", "--weights", "none"], 1, "there is no file or folder none"),
        (["pt2", "--device", "tpu"], 2, "there is no device called tpu"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_errors(options, code, message, here, weights, capsys):
    (here / "file").write_text("")
    defaults = {"--output": "net.file", "--weights": weights}
    others = [part for pair in defaults.items() if pair[0] not in options for part in pair]
    assert message in error_of(capsys, *options, *others, code=code)


def test_without_a_network(here, capsys):
    assert "no network is given; add --weights FILE" in error_of(capsys, "onnx", "--output", "a.onnx", code=2)
    assert "--output" in error_of(capsys, "onnx", "--model", "hyperseg-s", code=2)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(here, weights, capsys):
    (here / "locked").mkdir(mode=0o500)
    assert "this user may not write to" in error_of(capsys, "onnx", "--weights", weights, "--output", "locked/a.onnx")


def test_a_folder_that_may_not_be_written_fake(here, weights, monkeypatch, capsys):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "this user may not write to" in error_of(capsys, "onnx", "--weights", weights, "--output", "a.onnx")


def test_a_full_disk(here, weights, monkeypatch, capsys):
    def full(program, path):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("torch.export.save", full)
    command = ["pt2", "--weights", weights, "--size", "32x64", "--batch", "1", "--output", "a.pt2"]
    assert "a.pt2 cannot be written (No space left on device)" in error_of(capsys, *command)


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_a_missing_package_is_named_with_its_extra(package, here, weights, monkeypatch, capsys):
    from hyperseg._extras import require

    def absent(module, extra, purpose):
        return require(f"absent_{module}" if module == package else "json", extra, purpose)

    monkeypatch.setattr("hyperseg.export.onnx.require", absent)
    message = error_of(capsys, "onnx", "--weights", weights, "--output", "a.onnx")
    assert f"ONNX needs absent_{package}; run pip install 'hyperseg[onnx]'" in message


def test_too_few_images_to_calibrate(here, weights, capsys):
    (here / "images").mkdir()
    for i in range(3):
        Image.fromarray(np.zeros((8, 9, 3), np.uint8)).save(here / "images" / f"{i}.png")
    command = ["onnx", "--weights", weights, "--output", "a.onnx", "--precision", "int8", "--calibrate", "images"]
    assert "needs calibration: at least 8 frames" in error_of(capsys, *command, code=2)
