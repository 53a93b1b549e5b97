"""`hyperseg eval` from the command line: data sets in their layouts, scores, files, exit codes and messages."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import hyperseg
from hyperseg.cli import main
from hyperseg.data import CITYSCAPES, VOC
from hyperseg.data.cityscapes import TRAIN_ID_TO_ID
from hyperseg.models import save_official
from hyperseg.ops.backends import BackendError
from tests import golden
from tests.data.trees import camvid_tree, cityscapes_tree, folder_tree, voc_tree
from tests.evaluation.networks import Painted
from tests.evaluation.pairs import ABSENT_LABELS, ABSENT_PREDICTIONS

SIZE = (64, 96)
# `hyperseg eval` that prints the names of its threads as the last thing before the interpreter ends.
THREADS = """
import atexit, glob, sys
@atexit.register
def threads():
    names = [open(file).read().strip() for file in glob.glob("/proc/self/task/*/comm")]
    print("threads at exit:", *sorted(names), file=sys.stderr)
from hyperseg.cli import main
sys.exit(main(sys.argv[1:]))
"""


def save(path, labels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(labels).save(path)


def evaluate(*argv, code=0):
    """Run the command on the split val; return its JSON, or None if there is none."""
    file = "scores.json"
    assert main(["eval", *map(str, argv), "--json", file]) == code
    return json.load(open(file)) if os.path.exists(file) else None


def error_of(capsys, *argv, code=1):
    """Run a command that must fail; return its last line on stderr."""
    assert main(["eval", *map(str, argv)]) == code
    err = capsys.readouterr().err
    assert "Traceback" not in err
    last = err.splitlines()[-1]
    assert last.startswith("hyperseg eval: error: ")
    return last


@pytest.fixture
def own(folder):
    """A folder data set of three classes with perfect predictions; the labels by name."""
    labels = folder_tree(folder / "data", {"val": 5})
    for name, each in labels.items():
        save(folder / "predictions" / f"{name}.png", np.where(each == 255, 0, each).astype(np.uint8))
    return labels


FOLDER = ("--data", "folder", "--root", "data")
SCORED = (*FOLDER, "--predictions", "predictions")


def test_perfect_predictions(own, capsys):
    document = evaluate(*SCORED)
    out, err = capsys.readouterr()
    assert document["protocols"]["standard"]["miou"] == 1
    assert document["protocols"]["official"]["miou"] == pytest.approx(1, abs=1e-6)
    assert document["boundary_iou"]["miou"] == 1
    assert sum(map(sum, document["confusion"])) == sum(int((each != 255).sum()) for each in own.values())
    assert [image["name"] for image in document["images"]] == sorted(own)
    assert [each["name"] for each in document["classes"]] == ["road", "car", "person"]
    assert document["data"]["name"] == "folder"
    assert document["data"]["split"] == "val"
    assert document["settings"]["predictions"] == "predictions"
    assert "mIoU 100.00 standard" in out
    assert "mIoU 100.00 official" in out
    assert "folder val: 5 images, 3 classes" in err


def test_no_network_is_built_for_predictions(own, monkeypatch):
    monkeypatch.setattr(hyperseg, "create_model", None)
    monkeypatch.setattr(hyperseg, "load", None)
    assert evaluate(*SCORED) is not None


def test_classes_that_do_not_occur(folder, capsys):
    """One matrix over the set; absent classes are null and "-"."""
    names = [f"c{index}" for index in range(5)]
    for number, (labels, predictions) in enumerate([(ABSENT_LABELS, ABSENT_PREDICTIONS), (np.full((2, 4), 4),) * 2]):
        save(folder / f"data/images/val/i{number}.png", np.zeros((*labels.shape, 3), np.uint8))
        save(folder / f"data/masks/val/i{number}.png", labels.astype(np.uint8))
        save(folder / f"predictions/i{number}_labels.png", predictions.astype(np.uint8))
    (folder / "data/classes.yaml").write_text(f"classes: [{', '.join(names)}]\nignore_index: 255\n")
    document = evaluate(*SCORED)
    assert document["protocols"]["standard"]["per_class"] == [0.75, 0.5, None, 0.0, 1.0]
    assert document["protocols"]["standard"]["miou"] == pytest.approx(0.5625)
    assert document["pixel_accuracy"] == pytest.approx(13 / 15)
    (row,) = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("c2")]
    assert row == ["c2", "-", "0.00", "-", "-"]
    (folder / "data/masks/val/i1.png").unlink()
    (folder / "data/images/val/i1.png").unlink()
    document = evaluate(*SCORED)
    assert document["protocols"]["standard"]["miou"] == pytest.approx(0.416667, abs=1e-6)
    assert document["pixel_accuracy"] == pytest.approx(0.714286, abs=1e-6)
    assert document["protocols"]["standard"]["class_accuracy"] == pytest.approx(0.708333, abs=1e-6)


@pytest.mark.parametrize("ids", ["classes", "labelIds"])
def test_cityscapes_from_label_ids(folder, ids, capsys):
    labels = cityscapes_tree(folder / "data", {"val": 2})
    table = np.zeros(256, np.uint8)
    table[:19] = TRAIN_ID_TO_ID if ids == "labelIds" else range(19)
    for name, each in labels.items():
        save(folder / "p" / f"{name}_leftImg8bit.png", table[each % 19])
    data = ("--data", "cityscapes", "--root", "data", "--predictions", "p")
    document = evaluate(*data, "--prediction-ids", ids)
    assert document["protocols"]["standard"]["miou"] == 1
    assert document["settings"]["prediction_ids"] == ids
    if ids == "labelIds":  # read as classes they are wrong, and that is said
        capsys.readouterr()
        assert evaluate(*data)["protocols"]["standard"]["miou"] < 0.5
        assert "give --prediction-ids labelIds" in capsys.readouterr().err


@pytest.fixture
def painted(monkeypatch):
    """Replace networks with random weights by quick ones with the classes and settings of the named one."""
    tables = {"hyperseg-m-cityscapes": CITYSCAPES, "hyperseg-l-voc": VOC}
    monkeypatch.setattr(hyperseg, "create_model", lambda name: Painted(tables[name], name))
    monkeypatch.setattr(hyperseg, "synthesize_weights", lambda model: model)


@pytest.mark.usefixtures("painted")
def test_a_split_without_labels(folder, capsys):
    """Files for the server are written, but there is no score: not 0, and not NaN."""
    cityscapes_tree(folder / "data", {"test": 1})
    data = ("--data", "cityscapes", "--root", "data", "--split", "test", "--model", "hyperseg-m", "--module")
    assert "no labelled pixel" in error_of(capsys, *data, "--json", "scores.json")
    assert "no labelled pixel" in error_of(capsys, *data, "--submission", "server", "--json", "scores.json")
    assert main(["eval", *data, "--submission", "server"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "not scored" in err
    (file,) = (folder / "server").iterdir()
    assert set(np.unique(Image.open(file))) <= set(TRAIN_ID_TO_ID)
    assert not (folder / "scores.json").exists()


def bad_label(folder, name):
    labels = np.array(Image.open(folder / f"data/masks/val/{name}.png"))
    labels[0, 0] = 7
    save(folder / f"data/masks/val/{name}.png", labels)


def cut_prediction(folder, name):
    with open(folder / f"predictions/{name}.png", "r+b") as file:
        file.truncate(50)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder, name: (folder / f"predictions/{name}.png").unlink(), "no prediction for {0}"),
        (lambda folder, name: save(folder / f"predictions/{name}.png", np.zeros((5, 6), np.uint8)), "{0}.png is 5x6"),
        (cut_prediction, "predictions/{0}.png"),
        (bad_label, "masks/val/{0}.png"),
    ],
)
def test_a_bad_file_is_named_and_nothing_is_written(own, folder, capsys, damage, message):
    name = sorted(own)[2]
    damage(folder, name)
    last = error_of(capsys, *SCORED, "--json", "scores.json", "--report", "report.html")
    assert "1 of 5 images could not be scored" in last
    assert sorted(path.name for path in folder.iterdir()) == ["data", "predictions"]
    document = evaluate(*SCORED, "--skip-bad", code=3)
    assert message.format(name) in document["errors"][0]
    assert len(document["images"]) == 4
    out, err = capsys.readouterr()
    assert "ONLY 4 of 5 images are scored" in out
    assert message.format(name) in err


def test_extra_files_of_predictions_are_said(own, folder, capsys):
    save(folder / "predictions/other.png", np.zeros((4, 4), np.uint8))
    assert "1 PNG of predictions belong" in evaluate(*SCORED)["skipped"][0]
    assert "other.png" in capsys.readouterr().err


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A CamVid network whose labels vary from pixel to pixel."""
    model = golden.golden_model("hyperseg-s-camvid").eval()
    path = tmp_path_factory.mktemp("weights") / "official.pth"
    save_official(model, path)
    return str(path)


def test_a_network_and_its_saved_predictions_score_the_same(folder, weights, capsys):
    camvid_tree(folder / "data", "camvid", {"val": 3}, size=SIZE)
    data = ("--data", "camvid", "--root", "data")
    network = ("--weights", weights, "--model", "hyperseg-s-camvid", "--batch", 2)
    first = evaluate(*data, *network, "--save-predictions", "p", "--report", "report.html")
    assert "1 more class than the data set (Void)" in capsys.readouterr().err
    assert (folder / "report.html").stat().st_size > 10_000
    second = evaluate(*data, "--predictions", "p")
    for key in ("confusion", "other_predictions", "protocols", "boundary_iou", "images"):
        assert first[key] == second[key], key
    module = evaluate(*data, *network, "--module", "--backend", "reference")
    differing = np.abs(np.subtract(module["confusion"], first["confusion"])).sum()
    assert differing <= 0.002 * np.sum(first["confusion"])
    settings = module["settings"]
    assert (settings["runs_as"], settings["backend"], settings["size"]) == ("module", "reference", "native")
    resized = evaluate(*data, *network, "--size", "32x64", "--scales", 1, 2, "--flip", "--combine", "logits")
    assert sum(map(sum, resized["confusion"])) + sum(resized["other_predictions"]) == sum(
        image["labelled_pixels"] for image in first["images"]
    )
    assert resized["settings"]["scales"] == [1.0, 2.0]
    assert resized["confusion"] != first["confusion"]


@pytest.mark.usefixtures("painted")
def test_voc_is_padded_at_its_published_size(folder):
    labels = voc_tree(folder / "data")
    data = ("--data", "voc", "--root", "data")
    document = evaluate(*data, "--model", "hyperseg-l-voc", "--size", "model", "--module", "--normalise", "half")
    settings = document["settings"]
    assert (settings["size"], settings["resize"], settings["mean"]) == ("512x512", "pad", [0.5, 0.5, 0.5])
    for image in document["images"]:
        assert image["labelled_pixels"] == (labels[image["name"]] != 255).sum()


def test_two_processes_score_what_one_does(own, folder, monkeypatch):
    """As torchrun starts them: five images on two processes, each exactly once. This process is the first.

    A thread of the process group that outlives the interpreter may abort the process.
    """
    save(folder / "predictions/val_1.png", np.zeros((24, 32), np.uint8))
    one = evaluate(*SCORED)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for key, value in {"WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}.items():
        monkeypatch.setenv(key, str(value))
    command = [sys.executable, "-c", THREADS, "eval", *SCORED, "--json", "other.json"]
    root = os.path.dirname(os.path.dirname(hyperseg.__file__))
    environment = os.environ | {"RANK": "1", "LOCAL_RANK": "1", "PYTHONPATH": root, "PYTHONFAULTHANDLER": "1"}
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as other:
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("LOCAL_RANK", "0")
        two = evaluate(*SCORED)
        out, err = other.communicate(timeout=60)
    assert other.returncode == 0, err
    assert out == ""  # the first alone prints
    assert "gloo" not in err
    assert not (folder / "other.json").exists()  # and writes
    for key in one:
        if key not in ("created", "settings"):
            assert one[key] == two[key], key
    assert (one["settings"]["processes"], two["settings"]["processes"]) == (1, 2)


def test_other_processes_that_cannot_be_found(own, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    assert "cannot join the 2 processes of the run" in error_of(capsys, *SCORED)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((*FOLDER,), "no network is given"),
        ((*SCORED, "--weights", "x.pth"), "--weights concerns a network"),
        ((*SCORED, "--scales", "1", "2"), "--scales concerns a network"),
        ((*FOLDER, "--model", "hyperseg-m", "--prediction-ids", "labelIds"), "--prediction-ids concerns"),
        ((*FOLDER, "--model", "hyperseg-xl"), "hyperseg-xl"),
        ((*FOLDER, "--model", "hyperseg-m", "--size", "big"), "'big'"),
        ((*FOLDER, "--model", "hyperseg-m", "--window", "big"), "'big'"),
        ((*FOLDER, "--model", "hyperseg-m", "--batch", "0"), "'0'"),
        ((*SCORED, "--boundary-ratio", "2"), "'2'"),
        (("--data", "folders", "--root", "data", "--predictions", "p"), "folders"),
    ],
)
def test_invalid_command_lines(own, capsys, argv, message):
    assert message in error_of(capsys, *argv, code=2)


def test_settings_that_do_not_go_together(folder, weights, capsys):
    camvid_tree(folder / "data", "camvid", {"val": 1}, size=SIZE)
    data = ("--data", "camvid", "--root", "data", "--model", "hyperseg-s-camvid")
    assert "pad" in error_of(capsys, *data, "--resize", "pad", code=2)
    assert "window" in error_of(capsys, *data, "--stride", "8x8", code=2)


@pytest.mark.usefixtures("painted")
def test_what_cannot_be_done(own, folder, capsys, monkeypatch):
    assert "there is no folder nowhere" in error_of(capsys, *FOLDER, "--predictions", "nowhere")
    assert "there is no file or folder x.pth" in error_of(capsys, *FOLDER, "--weights", "x.pth")
    assert "did you mean hyperseg-l-voc?" in error_of(capsys, *FOLDER, "--weights", "hyperseg-l-vok")
    assert "no weights of hyperseg-l-camvid" in error_of(capsys, *FOLDER, "--weights", "hyperseg-l-camvid")
    monkeypatch.setenv("HYPERSEG_CACHE", "cache")
    assert "are not in the cache" in error_of(capsys, *FOLDER, "--weights", "hyperseg-m", "--offline")
    assert "but the data set has 3 classes" in error_of(capsys, *FOLDER, "--model", "hyperseg-m")
    assert "is a folder" in error_of(capsys, *SCORED, "--json", "data")
    assert "is a file where a folder is needed" in error_of(capsys, *SCORED, "--json", "data/classes.yaml/x.json")
    assert "no server for the classes" in error_of(capsys, *SCORED, "--submission", "p")
    assert "would be overwritten" in error_of(capsys, *SCORED, "--save-predictions", "data/masks/val")


def test_a_full_disk_leaves_nothing(own, folder, capsys, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    assert "--json scores.json: No space left" in error_of(capsys, *SCORED, "--json", "scores.json")
    assert sorted(path.name for path in folder.iterdir()) == ["data", "predictions"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_files_are_written_although_the_table_cannot_be(own, folder, capsys, monkeypatch):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(["eval", *SCORED, "--json", "scores.json", "--report", "report.html"]) == 1
    assert "the output cannot be written" in capsys.readouterr().err
    assert json.loads((folder / "scores.json").read_text())["pixel_accuracy"] == 1
    assert (folder / "report.html").exists()


def test_a_file_that_cannot_be_written_does_not_cost_the_other(own, folder, capsys, monkeypatch):
    import hyperseg.evaluation.report as report
    from hyperseg.evaluation import Evaluation

    def full(*args):
        raise OSError(28, "No space left on device")

    both = (*SCORED, "--json", "scores.json", "--report", "report.html")
    with monkeypatch.context() as change:
        change.setattr(report, "write_report", full)
        assert error_of(capsys, *both).endswith("--report report.html: No space left on device")
    assert (folder / "scores.json").exists()
    monkeypatch.setattr(Evaluation, "save", full)
    assert error_of(capsys, *both).endswith("--json scores.json: No space left on device")
    assert (folder / "report.html").exists()


def test_inputs_and_outputs_are_kept_apart(own, folder, capsys):
    before = (folder / "predictions/val_0.png").read_bytes()
    assert "would be overwritten" in error_of(capsys, *SCORED, "--save-predictions", "predictions")
    assert (folder / "predictions/val_0.png").read_bytes() == before
    last = error_of(capsys, *SCORED, "--json", "x", "--report", "data/../x", code=2)
    assert "--json and --report are both x; give two files" in last


def test_predictions_are_written_up_to_the_full_disk(own, capsys, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hyperseg.evaluation.submission.save_image", full)
    last = error_of(capsys, *SCORED, "--save-predictions", "copies")
    assert last.endswith("the predictions cannot be written to copies (No space left on device)")


def test_a_backend_that_does_not_run_here(folder, weights, capsys):
    camvid_tree(folder / "data", "camvid", {"val": 1}, size=SIZE)
    data = ("--data", "camvid", "--root", "data", "--model", "hyperseg-s-camvid", "--device", "cpu")
    assert issubclass(BackendError, RuntimeError)
    assert "cuda" in error_of(capsys, *data, "--backend", "cuda")


def test_a_weight_that_overflows_in_half_precision_is_refused(folder, capsys):
    model = golden.golden_model("hyperseg-s-camvid").eval()
    with torch.no_grad():
        next(model.decoder.parameters()).view(-1)[0] = 70000
    hyperseg.save(model, folder / "overflow")
    camvid_tree(folder / "data", "camvid", {"val": 1}, size=SIZE)
    data = ("--data", "camvid", "--root", "data", "--weights", "overflow")
    for form in ((), ("--module",)):
        last = error_of(capsys, *data, *form, "--dtype", "float16", "--json", "scores.json")
        assert "float16" in last
        assert "float32" in last
    assert not (folder / "scores.json").exists()
