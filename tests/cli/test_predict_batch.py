"""`hyperseg predict` with many images: one that cannot be done does not end the run; what is left out is said.

The network is a stand-in. Names, kinds, permissions and disks are those that tests/predict covers one by one.
"""

import errno
import io
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hyperseg.cli import main
from hyperseg.predict import SinkError

pytestmark = pytest.mark.usefixtures("stand_in")


@pytest.fixture
def photos(folder):
    """Copies one small photo to files of these names."""
    Image.fromarray(np.full((8, 12, 3), (64, 0, 128), np.uint8)).save(folder / "photo.png")

    def copy(*names):
        for name in names:
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / "photo.png", name)

    return copy


def predict(*arguments):
    return main(["predict", "--model", "hyperseg-s-camvid", "--no-overlay", *arguments])


def written(folder="predictions"):
    return sorted(path.name for path in Path(folder).iterdir())


def last_line(capsys):
    return capsys.readouterr().err.splitlines()[-1].removeprefix("hyperseg predict: ")


def test_skipped_files_are_named_and_counted(photos, capsys):
    photos("in/a.png", "in/b.heic", "in/c.dng", "in/d.jfif")
    Path("in/notes.txt").touch()
    Path("in/b.heic").write_bytes(b"\0\0\0\x18ftypheic")
    assert predict("in") == 3
    assert written() == ["a_labels.png", "d_labels.png"]
    err = capsys.readouterr().err
    assert "hyperseg predict: in/b.heic is skipped: .heic files" in err
    assert "hyperseg predict: in/c.dng is skipped: it is a raw photo" in err
    assert err.splitlines()[-1] == "hyperseg predict: 2 of 4 images done; 2 skipped"
    assert "notes.txt" not in err
    assert predict("in", "--json") == 3
    document = json.loads(capsys.readouterr().out)
    assert document["errors"] == []
    assert [message.partition(" ")[0] for message in document["skipped"]] == ["in/b.heic", "in/c.dng"]


def test_folders_in_a_folder_are_left_out(photos, capsys):
    photos("in/a.png", "in/sub/deeper/b.png", "in/.hidden/c.png")
    Path("in/texts").mkdir()
    Path("in/texts/a.txt").touch()
    assert predict("in", "--output", "in/predictions") == 0
    left = "1 folder with images is left out of in, such as sub; the pattern 'in/**/*' takes their files too"
    assert f"hyperseg predict: {left}\n" in capsys.readouterr().err
    assert predict("in/**/*", "--output", "all") == 0
    assert written("all") == ["a_labels.png", "b_labels.png"]
    assert "left out" not in capsys.readouterr().err


def test_a_folder_of_files_that_are_skipped(photos, capsys):
    photos("in/c.dng")
    assert predict("in") == 1
    err = capsys.readouterr().err
    assert "in/c.dng is skipped" in err
    assert "error: the folder in contains no image" in err


def test_failed_inputs_do_not_end_the_others(photos, capsys):
    photos("a.png", "z.png", "skipped/a.nef", "skipped/b.png")
    Path("broken.png").write_text("no image")
    Path("pipe.png").touch()
    os.unlink("pipe.png")
    os.mkfifo("pipe.png")
    bad = ["missing.png", "x" * 300 + ".png", "broken.png", "pipe.png", "a.png/b.png", "\0", "no*.png"]
    assert predict("a.png", *bad, "skipped", "z.png", "--json") == 1
    assert written() == ["a_labels.png", "b_labels.png", "z_labels.png"]
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert [image["image"] for image in document["images"]] == ["a.png", "skipped/b.png", "z.png"]
    assert len(document["errors"]) == len(bad)
    for message in [*document["errors"], *document["skipped"]]:
        assert f"hyperseg predict: {message}\n" in err
    assert err.splitlines()[-1] == "hyperseg predict: 3 of 11 images done; 7 failed, 1 skipped"


def test_names_of_every_kind(photos, capsys):
    """Output is printable and in order; every photo is done under a name of its own."""
    names = [b"caf\xe9.png", b"\x1b[2Jred.png", b"new\nline.png", b"-a.png", b"[1, 2].png", b"a*.png", b"a.png"]
    names += ["写真.png".encode(), b"o" * 251 + b".png", b"A.PNG", b"a.b.png"]
    photos(*(os.fsdecode(b"in/" + name) for name in names))
    assert predict("in") == 0
    out, err = capsys.readouterr()
    assert len(written()) == len(names)
    assert "in/caf\\xe9.png (8x12) -> predictions/caf\\xe9_labels.png" in out
    assert "in/\\x1b[2Jred.png (8x12)" in out
    assert "in/new\\nline.png (8x12)" in out
    assert f"the name is too long; the outputs of in/{'o' * 251}.png are called {'o' * 231}-" in err
    assert "several files are called A; the outputs of in/A.PNG are called A-1" in err
    assert "\x1b" not in out + err
    (out + err).encode()
    os.chdir("in")
    assert predict("--json", "--output", "../second", "--", *sorted(map(os.fsdecode, names))) == 0
    out = capsys.readouterr().out
    images = json.loads(out)["images"]
    assert out.isascii()
    assert {os.fsencode(image["image"]) for image in images} == set(names)
    assert all(Path(image["labels"]).exists() for image in images)


def test_a_terminal_without_these_letters(photos, monkeypatch):
    photos("écran.png")
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert predict("écran.png") == 0
    assert terminal.buffer.getvalue().startswith(b"\\xe9cran.png (8x12) -> predictions/\\xe9cran_labels.png")


@pytest.mark.parametrize("output", ["in", "in/predictions", "in/b/c"])
def test_a_second_run_does_not_take_the_outputs_for_images(photos, capsys, output):
    photos("in/a.png", "in/b/x_labels.png")
    for _ in range(3):
        assert main(["predict", "in/**/*", "in", "--model", "hyperseg-s-camvid", "--output", output, "--json"]) == 0
        images = json.loads(capsys.readouterr().out)["images"]
        assert [image["image"] for image in images] == ["in/a.png", "in/b/x_labels.png"]
    assert len(list(Path("in").rglob("*.png"))) == 2 + 4
    assert predict("in/predictions" if output == "in/predictions" else "in/*_overlay.png", "in/a.png") in (0, 1)


def test_only_outputs_of_an_earlier_run(photos, capsys):
    photos("a.png")
    assert predict("a.png") == 0
    assert predict("predictions") == 1
    assert last_line(capsys) == "error: only outputs of an earlier run were found; give images"


def test_a_full_disk_ends_the_run(photos, capsys, monkeypatch):
    """The images that are done are reported."""
    photos("a.png", "b.png", "c.png", "d.png")

    def replace(source, target, plain=os.replace):
        if "b_labels" in str(target):
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        plain(source, target)

    monkeypatch.setattr(os, "replace", replace)
    assert predict("a.png", "b.png", "c.png", "d.png", "--json") == 1
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert [image["image"] for image in document["images"]] == ["a.png"]
    reason = "b.png is not done: predictions/b_labels.png could not be written (No space left on device)"
    assert document["errors"] == [reason]
    assert err.splitlines()[-1] == f"hyperseg predict: error: {reason} (1 of 4 images done; 1 failed, 2 not tried)"
    assert written() == ["a_labels.png"]


def test_one_output_that_cannot_be_written(photos, capsys):
    photos("a.png", "b.png", "c.png")
    Path("predictions/b_labels.png/x").mkdir(parents=True)
    assert predict("a.png", "b.png", "c.png") == 1
    assert last_line(capsys) == "2 of 3 images done; 1 failed"
    assert {"a_labels.png", "c_labels.png"} < set(written())


def test_a_sink_that_fails_at_the_end_of_a_table(photos, capsys, monkeypatch):
    photos("a.png", "b.png")
    monkeypatch.setattr("hyperseg.predict.LabelSink.write", lambda self, prediction: raise_(SinkError("gone")))
    assert predict("a.png", "b.png") == 1
    assert last_line(capsys) == "error: gone (0 of 2 images done; 1 failed, 1 not tried)"


def raise_(error):
    raise error


def test_an_output_folder_that_may_not_be_written_to(photos, capsys, monkeypatch):
    """It is checked before the network is loaded. The tests may run as root, who may write everywhere."""
    photos("a.png")
    Path("closed").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).endswith("closed"))
    assert predict("a.png", "--output", "closed/new/folder") == 1
    assert "--output closed/new/folder: this user may not write to " in capsys.readouterr().err
    assert os.listdir("closed") == []


@pytest.mark.filterwarnings("error")
def test_warnings_of_pillow_are_not_shown(photos, capsys, monkeypatch):
    photos("a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 8 * 12 - 1)
    assert predict("a.png") == 0
    assert "Warning" not in capsys.readouterr().err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_standard_output_that_cannot_be_written(photos, capsys, monkeypatch):
    photos("a.png")
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert predict("a.png") == 1
    assert last_line(capsys).startswith("error: the output cannot be written (No space left on device)")
