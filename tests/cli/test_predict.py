"""`hyperseg predict` from the command line: files, tables, exit codes and messages.

The network is a stand-in whose output is known; test_predict_real.py runs a true one.
"""

import json
import os
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import hyperseg
from hyperseg.cli import main
from hyperseg.data import CAMVID, colorize
from hyperseg.ops import BackendError
from hyperseg.predict import Predictor
from hyperseg.predict import predictor as predictor_module
from hyperseg.runtime import EngineError

pytestmark = pytest.mark.usefixtures("stand_in")


@pytest.fixture
def painted(folder):
    """painted.png, three quarters Car and one quarter Road; its labels."""
    labels = np.full((40, 60), 8, np.uint8)
    labels[30:] = 3
    Image.fromarray(colorize(labels, CAMVID)).save(folder / "painted.png")
    return labels


def save(path, image):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return str(path)


def error_of(capsys, *argv, code=1):
    """Run a command that must fail; return its only line on stderr."""
    assert main(["predict", *map(str, argv)]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("hyperseg predict: error: ")
    assert "Traceback" not in err
    return err


def test_one_image(painted, folder, capsys):
    assert main(["predict", "painted.png", "--model", "hyperseg-s-camvid"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "painted.png (40x60) -> predictions/painted_labels.png, predictions/painted_overlay.png",
        "  Car     75.0%",
        "  Road    25.0%",
    ]
    assert err.splitlines() == [
        "hyperseg predict: no --weights: hyperseg-s-camvid runs with random weights, so its labels mean nothing; "
        "this only tries the pipeline"
    ]
    assert sorted(path.name for path in (folder / "predictions").iterdir()) == [
        "painted_labels.png",
        "painted_overlay.png",
    ]
    written = Image.open(folder / "predictions/painted_labels.png")
    assert np.array_equal(np.asarray(written), painted)
    assert np.array_equal(np.asarray(written.convert("RGB")), colorize(painted, CAMVID))
    assert np.array_equal(np.asarray(Image.open("predictions/painted_overlay.png")), colorize(painted, CAMVID))


def test_json(painted, folder, capsys, images):
    save("b.png", images["voc"][:75, :100])
    assert main(["predict", "painted.png", "b.png", "--model", "hyperseg-s-camvid", "--json", "--no-overlay"]) == 0
    document = json.loads(capsys.readouterr().out)
    records = document.pop("images")
    assert document == {
        "model": "hyperseg-s-camvid",
        "weights": None,
        "random_weights": True,
        "size": "native",
        "videos": [],
        "errors": [],
        "skipped": [],
    }
    assert records[0] == {
        "image": "painted.png",
        "height": 40,
        "width": 60,
        "network_size": [40, 60],
        "labels": "predictions/painted_labels.png",
        "classes": [
            {"index": 8, "name": "Car", "pixels": 1800, "share": 0.75},
            {"index": 3, "name": "Road", "pixels": 600, "share": 0.25},
        ],
    }
    assert sum(share["share"] for share in records[1]["classes"]) == pytest.approx(1)
    assert not list(folder.glob("predictions/*overlay*"))


@pytest.mark.parametrize(("size", "built"), [("model", (96, 128)), ("32x48", (32, 48)), ("native", (40, 60))])
def test_size(painted, stand_in, size, built):
    assert main(["predict", "painted.png", "--model", "hyperseg-s-camvid", "--size", size]) == 0
    assert stand_in == [built]
    assert Image.open("predictions/painted_labels.png").size == (60, 40)


def test_overlay_options(painted):
    options = ["--alpha", "0.1", "--legend", "--overlay-format", "jpg", "--output", "a/b"]
    assert main(["predict", "painted.png", "--model", "hyperseg-s", *options]) == 0
    image = Image.open("a/b/painted_overlay.jpg")
    assert image.format == "JPEG"
    assert image.size[1] > 40


def test_turned_image(folder, images):
    """Labels and overlay have the orientation of the upright image."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(images["voc"][:75, :100]).save("turned.jpg", exif=exif)
    assert main(["predict", "turned.jpg", "--model", "hyperseg-s-camvid"]) == 0
    assert Image.open("predictions/turned_labels.png").size == (75, 100)
    assert Image.open("predictions/turned_overlay.png").size == (75, 100)
    assert not Image.open("predictions/turned_overlay.png").getexif()


def test_same_stems(folder, images, capsys):
    inputs = [save("x/1.png", images["voc"][:75, :100]), save("y/1.png", images["coffee"][:80, :120])]
    assert main(["predict", *inputs, "--model", "hyperseg-s-camvid", "--no-overlay"]) == 0
    assert Image.open("predictions/x_1_labels.png").size == (100, 75)
    assert Image.open("predictions/y_1_labels.png").size == (120, 80)
    assert "several files are called 1; the outputs of x/1.png are called x_1" in capsys.readouterr().err


def test_an_image_named_twice_is_one(painted, capsys):
    assert main(["predict", "painted.png", "./painted.png", "--model", "hyperseg-s-camvid"]) == 0
    assert capsys.readouterr().out.count("painted.png (") == 1


def test_folder_with_a_broken_file(folder, images, capsys):
    """The other files are done; the exit code is not 0."""
    save("in/a.png", images["voc"][:75, :100])
    save("in/c.png", images["chelsea"][:60, :91])
    Path("in/b.jpg").write_bytes(b"")
    assert main(["predict", "in", "--model", "hyperseg-s-camvid", "--no-overlay"]) == 1
    out, err = capsys.readouterr()
    assert [line for line in out.splitlines() if "->" in line] == [
        "in/a.png (75x100) -> predictions/a_labels.png",
        "in/c.png (60x91) -> predictions/c_labels.png",
    ]
    assert "hyperseg predict: in/b.jpg is empty (0 bytes)" in err
    assert main(["predict", "in", "--model", "hyperseg-s-camvid", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["errors"] == ["in/b.jpg is empty (0 bytes); give an image file"]


def test_results_are_overwritten_and_inputs_are_not(painted, folder, capsys):
    arguments = ["painted.png", "--model", "hyperseg-s-camvid", "--output", "."]
    assert main(["predict", *arguments]) == 0
    assert main(["predict", *arguments]) == 0, "a second run replaces the results of the first"
    capsys.readouterr()
    before = Path("painted_labels.png").read_bytes()
    assert "painted_labels.png is one of the input images and would be overwritten" in error_of(
        capsys, "painted_labels.png", *arguments
    )
    assert Path("painted_labels.png").read_bytes() == before


MODEL = ["--model", "hyperseg-s"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.png", *MODEL], "there is no file missing.png; give an image"),
        (["missing.png", "no.png", *MODEL], "there is no file missing.png; give an image"),
        (["painted.png", "--weights", "no.pth"], "no file or folder no.pth; --weights takes an official .pth"),
        (
            ["painted.png", "--weights", "painted.png"],
            "painted.png is damaged or not a PyTorch checkpoint: it has another format.",
        ),
        (["painted.png", "--weights", "."], "model.safetensors does not exist"),
        (["painted.png", *MODEL, "--device", "cuda:99"], "CUDA devices here; give cpu or auto"),
        (["painted.png", *MODEL, "--output", "painted.png"], "painted.png is a file; give a folder"),
        (["painted.png", *MODEL, "--output", "painted.png/x"], "painted.png is a file; give a folder"),
    ],
)
def test_messages(painted, capsys, arguments, message):
    assert message in error_of(capsys, *arguments)
    assert not Path("predictions").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: SOURCE"),
        (["painted.png"], "no network is given; add --weights FILE for trained weights, or --model NAME"),
        (["painted.png", "--model", "unet"], "no network 'unet'; choose from hyperseg-l-camvid"),
        (["painted.png", *MODEL, "--size", "big"], "size 'big' is not understood; give native, model"),
        (["painted.png", *MODEL, "--size", "512 x 1024,"], "size '512 x 1024,' is not understood"),
        (["painted.png", *MODEL, "--device", "abacus"], "there is no device called abacus"),
        (["a.png", "--alpha", "1.5"], "argument --alpha: '1.5' is no number such as 0.6; give 0 (image only) to 1"),
        (["a.png", "--alpha", "much"], "argument --alpha: 'much' is no number such as 0.6"),
        (["a.png", "--alpha", "0,6"], "argument --alpha: '0,6' is no number such as 0.6"),
        (["a.png", "--alpha", "nan"], "argument --alpha: 'nan' is no number such as 0.6"),
        (["a.png", "--dtype", "int8"], "invalid choice: 'int8' (choose from"),
        (["a.png", "--wieghts", "w.pth"], "unrecognized arguments: --wieghts"),
        *(
            (["a.png", f"--{name}", ""], f"argument --{name}: the value is empty; is it a variable that is not set?")
            for name in ("weights", "model", "output", "size", "device")
        ),
        (["", *MODEL], "argument SOURCE: the value is empty"),
        (["a.png", " ", *MODEL], "argument SOURCE: the value is empty"),
    ],
)
def test_invalid_command_lines(painted, capsys, arguments, message):
    """Whatever no machine would accept has the exit code 2 and a pointer to the help."""
    line = error_of(capsys, *arguments, code=2)
    assert message in line
    assert line.endswith("(see hyperseg predict --help)\n")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."),  # inside a native operator
        RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"),
    ],
)
def test_an_image_that_does_not_fit_in_memory(painted, monkeypatch, capsys, images, error):
    save("z.png", images["chelsea"][:30, :45])

    def call(self, image, plain=Predictor.__call__):
        if image.shape[0] == 30:
            raise error
        return plain(self, image)

    monkeypatch.setattr(Predictor, "__call__", call)
    assert main(["predict", "z.png", "painted.png", "--model", "hyperseg-s-camvid"]) == 1
    out, err = capsys.readouterr()
    assert "z.png (30x45) does not fit in memory; try --size model" in err
    assert "painted.png (40x60) ->" in out


def test_an_engine_that_cannot_be_built(painted, monkeypatch, capsys):
    def build_engine(model, **settings):
        raise EngineError("The engine (eager, float16, cpu) does not match the module.")

    monkeypatch.setattr("hyperseg.predict.predictor.build_engine", build_engine)
    assert main(["predict", "painted.png", "--model", "hyperseg-s-camvid", "--dtype", "float16"]) == 1
    assert capsys.readouterr().err.endswith(
        "hyperseg predict: error: The engine (eager, float16, cpu) does not match the module.\n"
    )


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        ("fastest", "HYPERSEG_BACKEND: There is no backend 'fastest'"),
        ("triton", "The backend 'triton' does not support"),
    ],
)
def test_a_backend_of_the_environment(painted, monkeypatch, capsys, backend, message):
    def refuse(predictor, size):
        raise BackendError(f"The backend '{backend}' does not support stem")

    monkeypatch.setenv("HYPERSEG_BACKEND", backend)
    monkeypatch.setattr(Predictor, "engine", refuse)
    assert main(["predict", "painted.png", "--model", "hyperseg-s-camvid"]) == 1
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_weights(painted, monkeypatch, capsys):
    """hyperseg.load gets the file and the full name of the network; tests/models/test_checkpoint.py has the rest."""
    loaded = []

    def load(path, name=None):
        loaded.append((path, name))
        return hyperseg.create_model("hyperseg-m-cityscapes")

    monkeypatch.setattr(hyperseg, "load", load)
    Path("official.pth").touch()
    Path("mine").mkdir()
    for weights in ("official.pth", "mine"):
        assert main(["predict", "painted.png", "--weights", weights]) == 0
    assert main(["predict", "painted.png", "--weights", "official.pth", "--model", "hyperseg-m"]) == 0
    assert "random" not in capsys.readouterr().err
    assert loaded == [("official.pth", None), ("mine", None), ("official.pth", "hyperseg-m-cityscapes")]


def test_weights_by_name(painted, monkeypatch):
    """hyperseg.load gets the name; tests/models/test_released.py has the rest. --offline ends with the command."""
    loaded = []

    def load(path, name=None):
        loaded.append((path, name, os.environ.get("HYPERSEG_OFFLINE"), os.environ.get("HF_HUB_OFFLINE")))
        return hyperseg.create_model("hyperseg-m-cityscapes")

    monkeypatch.setattr(hyperseg, "load", load)
    for variable in ("HYPERSEG_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    assert main(["predict", "painted.png", "--weights", "hyperseg-m-cityscapes"]) == 0
    assert main(["predict", "painted.png", "--weights", "hyperseg-m", "--offline"]) == 0
    assert main(["predict", "painted.png", "--weights", "hyperseg-m", "--model", "hyperseg-m-cityscapes"]) == 0
    full = "hyperseg-m-cityscapes"
    assert loaded == [(full, None, None, None), ("hyperseg-m", None, "1", "1"), ("hyperseg-m", full, None, None)]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["hyperseg-m-citiscapes"], 1, "no file or folder hyperseg-m-citiscapes; --weights takes an official .pth"),
        (["hyperseg-m-citiscapes"], 1, "; did you mean hyperseg-m-cityscapes?"),
        (["hyperseg-l-camvid"], 1, "--weights: no weights of hyperseg-l-camvid were ever released; train it"),
        (["hyperseg-m", "--model", "hyperseg-s"], 2, "is the network hyperseg-m-cityscapes, but --model is hyperseg-s"),
        (["hyperseg-m", "--offline"], 1, "are not in the cache"),
        (["hyperseg-m", "--offline", "--model", "hyperseg-m"], 1, "downloads are turned off"),
    ],
)
def test_names_without_weights(painted, monkeypatch, capsys, arguments, code, message):
    monkeypatch.setenv("HYPERSEG_CACHE", "cache")
    assert main(["predict", "painted.png", "--weights", *arguments]) == code
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_interrupt(painted, monkeypatch, capsys):
    def interrupt(self, image):
        raise KeyboardInterrupt

    monkeypatch.setattr(Predictor, "__call__", interrupt)
    assert main(["predict", "painted.png", "--model", "hyperseg-s-camvid"]) == 130
    message = "interrupted (0 of 1 image done; 1 not finished); --resume leaves out what is done"
    assert capsys.readouterr().err.splitlines()[-1] == f"hyperseg predict: error: {message}"


def test_all_that_is_written_before_an_interrupt_is_reported(folder, monkeypatch, capsys):
    calls, label = [], Predictor.__call__

    def interrupt(self, image):
        calls.append(image)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return label(self, image)

    for index in range(8):
        save(f"in/{index}.png", np.zeros((32, 32, 3), np.uint8))
    monkeypatch.setattr(Predictor, "__call__", interrupt)
    assert main(["predict", "in", *MODEL, "--no-overlay"]) == 130
    out, err = capsys.readouterr()
    written = sorted(Path("predictions").iterdir())
    assert 3 <= len(written) <= 5
    assert [line.rpartition(" -> ")[2] for line in out.splitlines() if "->" in line] == list(map(str, written))
    assert f"({len(written)} of 8 images done; {8 - len(written)} not finished)" in err
    assert main(["predict", "in", *MODEL, "--no-overlay", "--resume"]) == 0
    assert f"{len(written)} images had been done before" in capsys.readouterr().err


def test_an_output_folder_that_cannot_be_created(painted, capsys):
    """It is found before the network runs. No right is missing in /proc, and still nothing can be created."""
    if not os.access("/proc", os.W_OK):
        pytest.skip("needs a folder where rights do not say all")
    message = error_of(capsys, "painted.png", *MODEL, "--output", "/proc/nope")
    assert "--output /proc/nope: it cannot be created (No such file or directory); give another --output" in message


def test_colors_of_ones_own(painted, capsys):
    Path("classes.yaml").write_text('classes: [Car]\ncolors: {Car: "#010203"}\n')
    command = ["painted.png", "--model", "hyperseg-s-camvid", "--write", "colors"]
    assert main(["predict", *command, "--colors", "classes.yaml"]) == 0
    picture = np.asarray(Image.open("predictions/painted_colors.png"))
    assert [tuple(picture[row, 0]) for row in (0, -1)] == [(1, 2, 3), CAMVID.colors[3]]
    assert main(["predict", *command, "--resume"]) == 0
    assert "done before" not in capsys.readouterr().err, "the colours differ"
    Path("classes.yaml").write_text("classes: [lorry]")
    assert main(["predict", *command, "--colors", "classes.yaml"]) == 1
    assert "--colors: lorry in classes.yaml is no class of the network; it has Sky, Building" in capsys.readouterr().err
    assert "--colors: " in error_of(capsys, *command, "--colors", "nowhere.yaml")


def test_explain_counts_the_building_of_the_engine_apart(painted, monkeypatch, capsys):
    build = predictor_module.build_engine

    def slow(*arguments, **options):
        time.sleep(0.2)
        return build(*arguments, **options)

    monkeypatch.setattr(predictor_module, "build_engine", slow)
    assert main(["predict", "painted.png", *MODEL, "--explain"]) == 0
    built, frame = capsys.readouterr().err.splitlines()[-2:]
    assert built.startswith("building and checking the engine, once per size: 0.2 s")
    assert float(re.search(r"network ([0-9.]+) ms", frame)[1]) < 150
