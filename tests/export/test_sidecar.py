"""A program and its sidecar: written together or not at all, and recognised together."""

import errno
import json

import pytest

from hyperseg.export import ExportError
from hyperseg.export.common import Check, Options, check_target
from hyperseg.export.sidecar import describe_program, finish, read_sidecar
from hyperseg.models.state import weights_hash

OPTIONS = Options((64, 96), source="mine")
CHECK = Check("a runtime 1.0", 1, 1, 0.9995, 1e-6, 2e-6)


def program(path):
    path.write_bytes(b"program")
    return [CHECK], ["another is not installed"]


def test_contents(small, tmp_path):
    about = describe_program("onnx", small, OPTIONS, ("torch",), opset=18)
    done = finish(tmp_path / "new" / "a.onnx", OPTIONS, about, program)
    assert done.file.read_bytes() == b"program"
    text = json.loads(done.sidecar.read_text())
    assert text == done.about == read_sidecar(done.file)
    assert done.sidecar.name == "a.onnx.json"
    assert text["file"] == "a.onnx"
    assert text["bytes"] == 7
    assert text["classes"][0] == "Sky"
    assert len(text["palette"]) == len(text["classes"]) == 12
    assert text["input"] == {"name": "frames", "dtype": "uint8", "layout": "NHWC RGB", "shape": ["N", 64, 96, 3]}
    assert text["weights"] == {"source": "mine", "sha256": weights_hash(small)}
    assert text["network"]["config"]["encoder"] == "test_efficientnet"
    assert text["checks"] == [vars(CHECK)]
    assert text["notes"] == ["another is not installed"]
    assert text["opset"] == 18


def disk_full(path):
    path.write_bytes(b"half a pro")
    raise OSError(errno.ENOSPC, "No space left on device")


def interrupted(path):
    path.write_bytes(b"half a pro")
    raise KeyboardInterrupt


@pytest.mark.parametrize(("write", "error"), [(disk_full, ExportError), (interrupted, KeyboardInterrupt)])
def test_nothing_is_half_written(write, error, tmp_path):
    with pytest.raises(error) as raised:
        finish(tmp_path / "a.onnx", OPTIONS, {}, write)
    assert not list(tmp_path.iterdir())
    if error is ExportError:
        assert str(raised.value) == f"{tmp_path / 'a.onnx'} cannot be written (No space left on device)"

    (tmp_path / "a.onnx").write_text("old")
    (tmp_path / "a.onnx.json").write_text("old")
    with pytest.raises(error):
        finish(tmp_path / "a.onnx", Options((64, 96), overwrite=True), {}, write)
    assert [path.read_text() for path in sorted(tmp_path.iterdir())] == ["old", "old"]


@pytest.mark.parametrize("present", ["a.onnx", "a.onnx.json"])
def test_files_are_replaced_on_request_only(present, tmp_path):
    (tmp_path / present).write_text("old")
    with pytest.raises(ExportError, match=rf"{present} exists; give another name, or overwrite=True"):
        finish(tmp_path / "a.onnx", OPTIONS, {}, program)
    assert finish(tmp_path / "a.onnx", Options((64, 96), overwrite=True), {}, program).about["bytes"] == 7


def test_names_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for name, message in (("", "is a folder"), ("none/", "is a folder"), ("file/a.onnx", "is a file; give a name in")):
        with pytest.raises(ExportError, match=message):
            check_target(f"{tmp_path}/{name}", overwrite=False)


def test_a_changed_program_is_noticed(tmp_path):
    done = finish(tmp_path / "a.onnx", OPTIONS, {}, program)
    done.file.write_bytes(b"another")
    with pytest.raises(ExportError, match=r"is not the file that a\.onnx\.json describes"):
        read_sidecar(done.file)
    done.sidecar.write_text("[]")
    with pytest.raises(ExportError, match=r"a\.onnx\.json is damaged, or something else"):
        read_sidecar(done.file)
    done.sidecar.unlink()
    with pytest.raises(ExportError, match=r"a\.onnx\.json cannot be read \(No such file"):
        read_sidecar(done.file)
