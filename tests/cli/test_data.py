"""`hyperseg data` from the command line: reports, files, exit codes, and one message per error."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hyperseg.cli import main
from hyperseg.cli._datasets import add_dataset_arguments
from hyperseg.cli.data import ACTIONS
from hyperseg.data import dataset_names, open_dataset
from tests.data.trees import camvid_tree, folder_tree, save


def output(capsys, *argv, code=0):
    """Run an action; return its lines on stdout and stderr."""
    assert main(["data", *map(str, argv)]) == code
    out, err = capsys.readouterr()
    return out.splitlines(), err.splitlines()


def error_of(capsys, *argv, code=1):
    """Run an action that must fail; return its only line on stderr but for those that say what was opened."""
    out, err = output(capsys, *argv, code=code)
    assert out == []
    lines = [line for line in err if " error: " in line]
    assert len(lines) == 1
    assert err[-1] == lines[0]
    return lines[0]


def test_help(capsys):
    for action in ACTIONS:
        with pytest.raises(SystemExit) as exit:
            main(["data", action, "--help"])
        assert exit.value.code == 0
        assert "Exit codes" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["data", "--help"])
    assert all(action in capsys.readouterr().out for action in ["check"])


def test_every_option_is_explained():
    from hyperseg.cli import build_parser

    (verbs,) = (action.choices for action in build_parser()._actions if action.dest == "verb")
    (actions,) = (action.choices for action in verbs["data"]._actions if action.dest == "action")
    assert tuple(actions) == ACTIONS
    for name, parser in actions.items():
        for action in parser._actions:
            assert action.help, f"{name} {action.dest}"


def test_help_names_all_data_sets():
    import argparse

    parser = argparse.ArgumentParser()
    add_dataset_arguments(parser)
    assert all(name in parser.format_help() for name in dataset_names())


class TestOptions:
    """The options that choose a data set."""

    def test_form_is_printed(self, capsys, tmp_path):
        camvid_tree(tmp_path)
        _, err = output(capsys, "check", "--data", "camvid", "--root", tmp_path, "--split", "val")
        assert len(err) == 1
        assert err[0].startswith("hyperseg data: camvid val: 2 images, 11 classes; CamVid as SegNet published it")

    @pytest.mark.parametrize(
        ("arguments", "code", "message"),
        [
            (["--data", "kitti", "--root", "x"], 2, "there is no data set 'kitti'; give one of cityscapes,"),
            (["--data", "camvid"], 2, "the data set camvid has files; give their folder with --root DIR"),
            (["--root", "x"], 2, "the following arguments are required: --data"),
            (["--data", "camvid", "--root", "missing/x"], 1, "the root missing/x does not exist"),
            (["--data", "camvid", "--root", ""], 2, "argument --root: the value is empty"),
            (
                ["--data", "synthetic", "--option", "sizes=3"],
                2,
                "synthetic has no option 'sizes'; its options are images",
            ),
            (
                ["--data", "synthetic", "--option", "images"],
                2,
                "'images' is not KEY=VALUE; give for example images=500",
            ),
            (["--data", "synthetic", "--option", "size=12"], 2, "size is 12; give HEIGHTxWIDTH"),
            (["--data", "synthetic", "--option", "seed=1", "--option", "seed=2"], 2, "--option seed was given twice"),
            (["--data", "synthetic", "--split", "trial"], 1, "synthetic has no split 'trial'"),
        ],
    )
    def test_errors(self, capsys, arguments, code, message):
        for action in ("check", "show"):
            line = error_of(capsys, action, *arguments, code=code)
            assert line.startswith("hyperseg data: error: ")
            assert message in line

    def test_values_are_json_or_text(self, capsys, tmp_path):
        size = ["--option", "size=[32, 64]", "--option", "images=3"]
        out, _ = output(capsys, "show", "--data", "synthetic", *size, "--output", tmp_path / "a.png")
        with Image.open(out[0]) as one:
            first = one.tobytes()
        size = ["--option", "size=32x64", "--option", "images=3"]
        out, _ = output(capsys, "show", "--data", "synthetic", *size, "--output", tmp_path / "b.png")
        with Image.open(out[0]) as two:
            assert two.tobytes() == first


class TestCheck:
    def test_clean(self, capsys, tmp_path):
        written = folder_tree(tmp_path / "data", {"train": 3, "val": 2})
        arguments = ["check", "--data", "folder", "--root", tmp_path / "data", "--json", tmp_path / "x" / "check.json"]
        out, err = output(capsys, *arguments)
        assert out[-1] == "5 images checked: no problems, 0 notes"
        assert [line for line in out if line.startswith("folder")] == [
            "folder train: 3 images, 24x32",
            "folder val: 2 images, 24x32",
        ]
        assert len(err) == 2
        document = json.loads((tmp_path / "x" / "check.json").read_text(), parse_constant=pytest.fail)
        assert document["clean"] is True
        assert document["data"] == "folder"
        assert [split["split"] for split in document["splits"]] == ["train", "val"]
        for split in document["splits"]:
            labels = [labels for name, labels in written.items() if name.startswith(split["split"])]
            for index, row in enumerate(split["classes"]):
                assert row["pixels"] == sum(int((one == index).sum()) for one in labels)

    def test_problems(self, capsys, tmp_path):
        folder_tree(tmp_path, {"train": 14})
        for number in range(13):
            save(np.full((24, 32), 7, np.uint8), tmp_path / f"masks/train/train_{number}.png")
        report = tmp_path / "check.json"
        out, _ = output(capsys, "check", "--data", "folder", "--root", tmp_path, "--json", report, code=1)
        assert "  labels cannot be used (13):" in out
        assert sum("contains 7" in line for line in out) == 10
        assert "    ... and 3 more; --json FILE lists all" in out
        assert out[-1].startswith("14 images checked: 13 problems")
        document = json.loads(report.read_text())
        assert len(document["problems"]) == 13
        assert document["clean"] is False

    def test_missing_masks_do_not_keep_the_others_from_being_checked(self, capsys, tmp_path):
        folder_tree(tmp_path, {"train": 4})
        (tmp_path / "masks/train/train_1.png").unlink()
        save(np.full((24, 32), 9, np.uint8), tmp_path / "masks/train/train_3.png")
        out, _ = output(capsys, "check", "--data", "folder", "--root", tmp_path, code=1)
        text = "\n".join(out)
        assert "train_1.jpg" in text
        assert "train_3.png contains 9" in text
        assert out[-1] == "3 images checked: 2 problems, 0 notes"

    def test_one_split_that_cannot_be_opened(self, capsys, tmp_path):
        camvid_tree(tmp_path)
        next((tmp_path / "val").iterdir()).unlink()
        out, _ = output(capsys, "check", "--data", "camvid", "--root", tmp_path, code=1)
        assert "  split cannot be opened (1):" in out
        assert "5 images checked" in out[-1]

    def test_output_that_cannot_be_written(self, capsys, tmp_path):
        folder_tree(tmp_path)
        arguments = ["check", "--data", "folder", "--root", tmp_path, "--json"]
        assert "is a folder; give the name of a file" in error_of(capsys, *arguments, tmp_path)
        assert "classes.yaml is a file" in error_of(capsys, *arguments, tmp_path / "classes.yaml" / "x.json")

    def test_full_disk(self, capsys, tmp_path, monkeypatch):
        def full(self, *args, **kwargs):
            raise OSError(28, "No space left on device")

        folder_tree(tmp_path)
        monkeypatch.setattr(Path, "write_text", full)
        arguments = ["--data", "folder", "--root", str(tmp_path), "--json", str(tmp_path / "c.json")]
        assert main(["data", "check", *arguments]) == 1
        assert "No space left on device" in capsys.readouterr().err
        assert not (tmp_path / "c.json").exists()
        assert not [path for path in os.listdir(tmp_path) if path.startswith(".")]

    def test_bars_fit_the_encoding_of_the_output(self, capsys, tmp_path, monkeypatch):
        import io
        import sys

        folder_tree(tmp_path, {"train": 2})
        stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        monkeypatch.setattr(sys, "stdout", stream)
        assert main(["data", "check", "--data", "folder", "--root", str(tmp_path)]) == 0
        text = stream.buffer.getvalue().decode()
        assert "#" * 24 in text
        assert "\\u" not in text


class TestShow:
    @pytest.mark.parametrize("name", ["sheet.png", "sheet.jpg"])
    def test_sheet(self, capsys, tmp_path, name):
        folder_tree(tmp_path / "data", {"val": 5})
        arguments = ["show", "--data", "folder", "--root", tmp_path / "data", "--output", tmp_path / name]
        out, _ = output(capsys, *arguments, "--count", 3, "--width", 100, "--columns", 1)
        assert out == [str(tmp_path / name)]
        with Image.open(tmp_path / name) as image:
            assert image.width == 12 + 200 + 12

    def test_choice_of_images(self, capsys, tmp_path, monkeypatch):
        from hyperseg.data import show

        folder_tree(tmp_path / "data", {"val": 9})
        chosen = []

        def sheet(data, indices, *rest):
            chosen.append(indices)
            return Image.new("RGB", (9, 9))

        monkeypatch.setattr(show, "contact_sheet", sheet)
        arguments = ["show", "--data", "folder", "--root", tmp_path / "data", "--output", tmp_path / "s.png"]
        output(capsys, *arguments, "--count", 3)
        output(capsys, *arguments, "--images", "val_7", "val_2.jpg")
        for seed in (5, 5, 6):
            output(capsys, *arguments, "--count", 4, "--random", seed)
        assert chosen[:2] == [[0, 4, 8], [7, 2]]
        assert chosen[2] == chosen[3] != chosen[4]
        assert all(len(set(indices)) == 4 for indices in chosen[2:])

    def test_damaged_image(self, capsys, tmp_path):
        folder_tree(tmp_path / "data", {"val": 3})
        (tmp_path / "data/masks/val/val_1.png").write_bytes(b"x")
        arguments = ["show", "--data", "folder", "--root", tmp_path / "data", "--output", tmp_path / "s.png"]
        out, err = output(capsys, *arguments, code=1)
        assert out == [str(tmp_path / "s.png")]
        assert sum("val_1.png" in line for line in err) == 1

    @pytest.mark.parametrize(
        ("arguments", "code", "message"),
        [
            (["--output", "a.gif"], 2, "--output a.gif does not end in .png or .jpg"),
            (["--width", "20"], 2, "--width 20 is too narrow; give at least 64"),
            (["--count", "0"], 2, "argument --count: '0' is no whole number from 1"),
            (["--images", "a", "--random", "1"], 2, "not allowed with argument"),
            (["--images", "nothing"], 1, "--images: there is no image 'nothing' in synthetic val"),
            (["--output", "missing.png/x.png"], 1, "is a file"),
        ],
    )
    def test_errors(self, capsys, tmp_path, monkeypatch, arguments, code, message):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "missing.png").touch()
        assert message in error_of(capsys, "show", "--data", "synthetic", *arguments, code=code)
        assert sorted(os.listdir(tmp_path)) == ["missing.png"]


class TestExport:
    def test_computed_scenes_as_files(self, capsys, tmp_path):
        options = ["--option", "images=2", "--option", "size=32x64"]
        splits = ["--split", "train", "--split", "val"]
        out, _ = output(capsys, "export", "--data", "synthetic", *options, *splits, "--output", tmp_path / "copy")
        assert out == [f"4 images -> {tmp_path / 'copy'}"]
        copy = open_dataset("folder", tmp_path / "copy", "val")
        source = open_dataset("synthetic", "-", "val", images=2, size=(32, 64))
        assert (copy.labels(1) == source.labels(1)).all()
        again = ["export", "--data", "synthetic", *splits, "--output", tmp_path / "copy"]
        assert "--output: there are files in" in error_of(capsys, *again)

    def test_damaged_file(self, capsys, tmp_path):
        folder_tree(tmp_path / "data", {"val": 3})
        (tmp_path / "data/masks/val/val_1.png").write_bytes(b"x")
        arguments = ["export", "--data", "folder", "--root", tmp_path / "data", "--output", tmp_path / "copy"]
        out, err = output(capsys, *arguments, code=1)
        assert out == [f"2 images -> {tmp_path / 'copy'}"]
        assert sum("val_1.png" in line for line in err) == 1


class TestDownload:
    def test_voc(self, capsys, tmp_path, monkeypatch):
        from hyperseg._transfer import Progress
        from hyperseg.data import download

        calls = []

        def fake(root, on_progress, urls, augmented, keep_archives):
            for done, unpacking in ((10, False), (30, False), (5, True)):
                on_progress(Progress("a.tar", done, None if unpacking else 30, unpacking))
            calls.append((root, urls, augmented, keep_archives))
            return Path(root) / "VOCdevkit" / "VOC2012"

        monkeypatch.setattr(download, "download_voc", fake)
        out, _ = output(
            capsys, "download", "voc", "--root", tmp_path, "--no-augmented", "--url", "list.zip=http://m/l.zip"
        )
        assert out == [str(tmp_path / "VOCdevkit" / "VOC2012")]
        assert calls == [(str(tmp_path), {"list.zip": "http://m/l.zip"}, False, False)]

    @pytest.mark.parametrize(
        ("arguments", "code", "message"),
        [
            (["kitti", "--root", "x"], 2, "there is no data set 'kitti'; voc can be downloaded"),
            (["synthetic", "--root", "x"], 2, "the data set synthetic has no files: it is computed"),
            (["cityscapes", "--root", "x"], 1, "Cityscapes needs a login"),
            (["camvid", "--root", "x"], 1, "camvid cannot be downloaded here"),
            (["voc"], 2, "the following arguments are required: --root"),
            (["voc", "--root", "x", "--url", "abc"], 2, "'abc' is not ARCHIVE=URL"),
            (["voc", "--root", "x", "--url", "abc=http://127.0.0.1:9/"], 1, "there is no archive abc of voc"),
        ],
    )
    def test_errors(self, capsys, tmp_path, monkeypatch, arguments, code, message):
        monkeypatch.chdir(tmp_path)
        assert message in error_of(capsys, "download", *arguments, code=code)
