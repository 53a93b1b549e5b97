"""`hyperseg predict` as a user meets it: files, tables, exit codes and sentences.

The network is a stand-in that knows the answer; test_real.py runs the true one.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import hyperseg
import hyperseg.predict
from hyperseg.cli import main
from hyperseg.data import CAMVID, colorize
from hyperseg.runtime import EngineError

pytestmark = pytest.mark.usefixtures("stand_in")
ROOT = Path(hyperseg.__file__).parent.parent


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current directory: an empty one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def painted(folder):
    """painted.png, three quarters Car and one quarter Road; its labels."""
    labels = np.full((40, 60), 8, np.uint8)
    labels[30:] = 3
    Image.fromarray(colorize(labels, CAMVID)).save(folder / "painted.png")
    return labels


def photo(path, picture):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)
    return str(path)


def complaint(capsys, *argv, code=1):
    """Runs a command that must fail; its only line on stderr."""
    assert main(["predict", *map(str, argv)]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("hyperseg predict: error: ")
    assert "Traceback" not in err
    return err


def test_one_photo(painted, folder, capsys):
    assert main(["predict", "painted.png", "--model", "hyperseg-s-camvid"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "painted.png (40x60) -> predictions/painted_labels.png",
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


def test_json(painted, folder, capsys, photos):
    photo("b.png", photos["voc"])
    assert main(["predict", "painted.png", "b.png", "--model", "hyperseg-s-camvid", "--json", "--no-overlay"]) == 0
    document = json.loads(capsys.readouterr().out)
    images = document.pop("images")
    assert document == {
        "model": "hyperseg-s-camvid",
        "weights": None,
        "random_weights": True,
        "size": "native",
        "errors": [],
    }
    assert images[0] == {
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
    assert sum(share["share"] for share in images[1]["classes"]) == pytest.approx(1)
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


def test_turned_photo(folder, photos):
    """Labels and overlay fit the upright photo, which is what people see."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photos["voc"]).save("turned.jpg", exif=exif)
    assert main(["predict", "turned.jpg", "--model", "hyperseg-s-camvid"]) == 0
    assert Image.open("predictions/turned_labels.png").size == (375, 500)
    assert Image.open("predictions/turned_overlay.png").size == (375, 500)
    assert not Image.open("predictions/turned_overlay.png").getexif()


def test_same_stems(folder, photos, capsys):
    inputs = [photo("x/1.png", photos["voc"]), photo("y/1.png", photos["coffee"])]
    assert main(["predict", *inputs, "--model", "hyperseg-s-camvid", "--no-overlay"]) == 0
    assert Image.open("predictions/x_1_labels.png").size == (500, 375)
    assert Image.open("predictions/y_1_labels.png").size == (600, 400)
    assert "several photos are called 1; the outputs of x/1.png are called x_1" in capsys.readouterr().err


def test_the_same_photo_twice_is_one(painted, capsys):
    assert main(["predict", "painted.png", "./painted.png", "--model", "hyperseg-s-camvid"]) == 0
    assert capsys.readouterr().out.count("painted.png (") == 1


def test_folder_with_a_broken_file(folder, photos, capsys):
    """The others are done, the exit code is not 0."""
    photo("in/a.png", photos["voc"])
    photo("in/c.png", photos["chelsea"])
    Path("in/b.jpg").write_bytes(b"")
    assert main(["predict", "in", "--model", "hyperseg-s-camvid", "--no-overlay"]) == 1
    out, err = capsys.readouterr()
    assert [line for line in out.splitlines() if "->" in line] == [
        "in/a.png (375x500) -> predictions/a_labels.png",
        "in/c.png (300x451) -> predictions/c_labels.png",
    ]
    assert "hyperseg predict: in/b.jpg is empty (0 bytes)" in err
    assert main(["predict", "in", "--model", "hyperseg-s-camvid", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["errors"] == ["in/b.jpg is empty (0 bytes); give an image file"]


def test_results_are_written_over_photos_are_not(painted, folder, capsys, photos):
    arguments = ["painted.png", "--model", "hyperseg-s-camvid", "--output", "."]
    assert main(["predict", *arguments]) == 0
    assert main(["predict", *arguments]) == 0, "a second run replaces the results of the first"
    capsys.readouterr()
    before = Path("painted_labels.png").read_bytes()
    assert "painted_labels.png is one of the photos and would be written over" in complaint(
        capsys, "painted_labels.png", *arguments
    )
    assert Path("painted_labels.png").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["painted.png"], "no network is given; add --weights FILE for trained weights, or --model NAME"),
        (["missing.png", "--model", "hyperseg-s"], "there is no file missing.png; give an image"),
        (["painted.png", "--model", "unet"], "no network 'unet'; choose from hyperseg-l-camvid"),
        (["painted.png", "--weights", "no.pth"], "no file or folder no.pth; --weights takes an official .pth"),
        (["painted.png", "--weights", "painted.png"], "painted.png was refused, and nothing in it was executed"),
        (["painted.png", "--weights", "."], "model.safetensors does not exist"),
        (["painted.png", "--model", "hyperseg-s", "--alpha", "1.5"], "--alpha is 1.5; give 0 (photo only) to 1"),
        (["painted.png", "--model", "hyperseg-s", "--size", "big"], "size 'big' is not understood; give native, model"),
        (["painted.png", "--model", "hyperseg-s", "--device", "abacus"], "there is no device called abacus"),
        (["painted.png", "--model", "hyperseg-s", "--device", "cuda:99"], "CUDA devices here; give cpu or auto"),
        (["painted.png", "--model", "hyperseg-s", "--output", "painted.png"], "--output painted.png is a file"),
        (["painted.png", "--model", "hyperseg-s", "--output", "painted.png/x"], "could not be written"),
    ],
)
def test_sentences(painted, capsys, arguments, message):
    if "could not be written" in message:  # the network is loaded by then, which says that its weights are random
        assert main(["predict", *arguments]) == 1
        assert message in capsys.readouterr().err
    else:
        assert message in complaint(capsys, *arguments)
    assert not Path("predictions").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: photos (see hyperseg predict --help)"),
        (["a.png", "--alpha", "much"], "alpha: expected a float, got much"),
        (["a.png", "--dtype", "int8"], "invalid choice: 'int8' (choose from 'float32', 'float16', 'bfloat16')"),
        (["a.png", "--wieghts", "w.pth"], "unrecognized arguments: --wieghts"),
    ],
)
def test_command_lines_that_are_not_understood(capsys, arguments, message):
    assert message in complaint(capsys, *arguments, code=2)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."),  # inside a native operator
        RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"),
    ],
)
def test_out_of_memory_is_told_and_passed_over(painted, monkeypatch, capsys, photos, error):
    photo("z.png", photos["chelsea"])

    def runs_out(self, image, plain=hyperseg.predict.Segmenter.__call__):
        if image.shape[0] == 300:
            raise error
        return plain(self, image)

    monkeypatch.setattr(hyperseg.predict.Segmenter, "__call__", runs_out)
    assert main(["predict", "z.png", "painted.png", "--model", "hyperseg-s-camvid"]) == 1
    out, err = capsys.readouterr()
    assert "z.png (300x451) does not fit in memory; try --size model" in err
    assert "painted.png (40x60) ->" in out


def test_an_engine_that_cannot_be_built_is_told(painted, monkeypatch, capsys):
    def build_engine(model, **settings):
        raise EngineError("The engine (eager, float16, cpu) does not give the module's answer.")

    monkeypatch.setattr(hyperseg, "build_engine", build_engine)
    assert main(["predict", "painted.png", "--model", "hyperseg-s-camvid", "--dtype", "float16"]) == 1
    assert capsys.readouterr().err.endswith(
        "hyperseg predict: error: The engine (eager, float16, cpu) does not give the module's answer.\n"
    )


def test_weights_are_told_by_content(painted, monkeypatch, capsys, folder):
    """A folder, a .safetensors and a safetensors file of any name are our own; everything else is an official file."""
    loaded = []

    def loader(kind):
        def load(path, name=None):
            loaded.append((kind, str(path), name))
            return hyperseg.create_model("hyperseg-m-cityscapes")

        return load

    monkeypatch.setattr(hyperseg, "load", loader("own"))
    monkeypatch.setattr(hyperseg, "load_official", loader("official"))
    Path("renamed.bin").write_bytes((64).to_bytes(8, "little") + b'{"__metadata__":{}}')
    Path("a.safetensors").write_bytes(b"")
    Path("official.pth").write_bytes(b"PK\3\4..........")
    Path("mine").mkdir()
    for weights in ("renamed.bin", "a.safetensors", "mine", "official.pth"):
        assert main(["predict", "painted.png", "--weights", weights]) == 0
    assert main(["predict", "painted.png", "--weights", "official.pth", "--model", "hyperseg-m"]) == 0
    assert "random" not in capsys.readouterr().err
    assert loaded == [
        ("own", "renamed.bin", None),
        ("own", "a.safetensors", None),
        ("own", "mine", None),
        ("official", "official.pth", None),
        ("official", "official.pth", "hyperseg-m-cityscapes"),
    ]
    message = complaint(capsys, "painted.png", "--weights", "mine", "--model", "hyperseg-l")
    assert "mine holds hyperseg-m-cityscapes, not the hyperseg-l-voc of --model; leave --model out" in message


def test_help(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["predict", "--help"])
    assert exit.value.code == 0
    text = capsys.readouterr().out
    for words in ("--no-overlay", "--overlay-format {png,jpg}", "Opacity of the colours", "(default: predictions)"):
        assert words in text
    assert main([]) == 2
    assert "predict" in capsys.readouterr().err


def test_every_option_is_explained():
    from hyperseg.cli import VERBS, signature

    for verb in VERBS:
        module = __import__(f"hyperseg.cli.{verb}", fromlist=[verb])
        text, helps = signature._docstring(getattr(module, verb))
        assert text, verb
        assert set(helps) == set(getattr(module, verb).__annotations__) - {"return"}, verb


def test_interrupt(painted, monkeypatch, capsys):
    def interrupted(self, image):
        raise KeyboardInterrupt

    monkeypatch.setattr(hyperseg.predict.Segmenter, "__call__", interrupted)
    assert main(["predict", "painted.png", "--model", "hyperseg-s-camvid"]) == 130
    assert capsys.readouterr().err.endswith("hyperseg predict: error: interrupted\n")


def test_importing_the_cli_loads_no_torch():
    script = "import sys, hyperseg.cli, hyperseg.cli.predict; sys.exit('torch' in sys.modules or 'PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0


def test_python_m():
    done = subprocess.run(
        [sys.executable, "-m", "hyperseg", "predict", "x.jpg", "--alpha", "2"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == "hyperseg predict: error: --alpha is 2.0; give 0 (photo only) to 1 (colours only)\n"


def test_info(capsys):
    assert main(["info"]) == 0
    assert "Backends" in capsys.readouterr().out
