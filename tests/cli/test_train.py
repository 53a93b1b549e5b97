"""`hyperseg train` from the command line: a folder of images and masks to a network, and refusals."""

import json

import pytest
from PIL import Image

import hyperseg
from hyperseg.cli import main
from hyperseg.training import TrainingConfig, load_recipe, recipe_names
from tests.limits import file_size_limit
from tests.training.runs import SMALL, lines, make_folder, tiny_network  # noqa: F401 - a fixture

CHANGES = [argument for change in SMALL for argument in ("--set", change)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train")
    data = make_folder(folder / "boxes")
    run = folder / "run"
    arguments = ["--recipe", "folder", "--root", str(data), "--output", str(run), "--device", "cpu"]
    assert main(["train", *arguments, *CHANGES, "--steps", "4", "--save-every", "2"]) == 0
    return data, run


def test_a_folder_of_images_becomes_a_network(trained, tmp_path, capsys):
    data, run = trained
    assert [record["step"] for record in lines(run)] == [1, 2, 3, 4]
    assert all(isinstance(record["loss"], float) for record in lines(run))
    assert hyperseg.load(run / "final").config.class_names == ("sky", "box", "grass")
    image = str(data / "images" / "val" / "photo0.png")
    assert main(["predict", image, "--weights", str(run / "final"), "--output", str(tmp_path)]) == 0
    assert (tmp_path / "photo0_labels.png").exists()
    arguments = [
        "--data",
        "folder",
        "--root",
        str(data),
        "--split",
        "val",
        "--module",
        "--json",
        str(tmp_path / "e.json"),
    ]
    capsys.readouterr()
    assert main(["eval", *arguments, "--weights", str(run / "final")]) == 0
    found, own = (json.loads(p.read_text()) for p in (tmp_path / "e.json", run / "evaluation-val.json"))
    assert found["confusion"] == own["confusion"]


def test_resume_needs_no_recipe(trained, capsys):
    _, run = trained
    assert main(["train", "--resume", "--output", str(run), "--device", "cpu"]) == 0
    assert "continues from step 4 of 4" in capsys.readouterr().err


def test_a_run_is_not_overwritten(trained, capsys):
    data, run = trained
    assert main(["train", "--recipe", "folder", "--root", str(data), "--output", str(run), "--device", "cpu"]) == 1
    assert "has a run already" in capsys.readouterr().err


def test_curves(trained, capsys):
    pytest.importorskip("matplotlib")
    _, run = trained
    assert main(["train", "--plot", str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "curves.png")
    with Image.open(run / "curves.png") as image:
        assert image.width > 500
        assert len(image.convert("L").getcolors()) > 20


def test_print_config_is_a_recipe(tmp_path, capsys):
    arguments = ["--recipe", "hyperseg-l-voc", "--set", "optimizer.lr=1e-3", "--steps", "7", "--root", "here: 'x'"]
    assert main(["train", *arguments, "--deterministic", "--print-config"]) == 0
    file = tmp_path / "mine.yaml"
    file.write_text(capsys.readouterr().out)
    config = load_recipe(file)
    assert isinstance(config, TrainingConfig)
    assert (config.optimizer.lr, config.steps, config.data.root, config.run.deterministic) == (
        1e-3,
        7,
        "here: 'x'",
        True,
    )


def test_list(capsys):
    assert main(["train", "--list"]) == 0
    assert capsys.readouterr().out.split() == recipe_names()


RUN = ["--recipe", "folder", "--output", "RUN", "--root", "ROOT"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "there is no recipe"),
        (["--resume", "--output", "/nowhere"], 2, "there is no recipe"),
        (["--recipe", "nothing"], 2, "there is no recipe nothing"),
        (["--recipe", "folder"], 2, "give --output RUN"),
        (["--recipe", "folder", "--set", "lr=1"], 2, "there is no key lr"),
        (["--recipe", "folder", "--steps", "0", "--output", "x"], 2, "no whole number"),
        (["--recipe", "folder", "--output", "RUN"], 1, "data.root is missing"),
        (["--recipe", "folder", "--output", "RUN", "--root", "/nowhere"], 1, "/nowhere"),
        (
            [*RUN, "--set", "data.options={color: 1}"],
            1,
            "no option",
        ),
        ([*RUN, "--set", "data.val=test"], 1, "no split"),
        (
            [*RUN, "--set", "model.name=hyperseg-xl"],
            1,
            "hyperseg-xl",
        ),
        ([*RUN, "--set", "model.encoder_weights=missing.pth"], 1, "missing.pth"),
        (
            [*RUN, "--set", "model.encoder_weights=none", "--set", "model.init=hyperseg-s-camvit"],
            1,
            "did you mean hyperseg-s-camvid?",
        ),
        (
            [*RUN, "--set", "model.encoder_weights=none", "--set", "model.init=hyperseg-s-camvid", "--offline"],
            1,
            "are not in the cache",
        ),
        (["--plot", "/nowhere"], 1, "has no log.jsonl"),
    ],
)
def test_refusals(arguments, code, words, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HYPERSEG_CACHE", str(tmp_path / "cache"))
    root = make_folder(tmp_path / "root", train=1, val=1)
    places = {"RUN": str(tmp_path / "run"), "ROOT": str(root)}
    given = [places.get(argument, argument) for argument in arguments]
    assert main(["train", *given, "--device", "cpu"]) == code
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("hyperseg train: error: ")
    assert words in message
    assert not (tmp_path / "run").exists()


def test_a_full_disk_is_a_message(tmp_path, capsys):
    root = make_folder(tmp_path / "root", train=1, val=1)
    arguments = ["--recipe", "folder", "--root", str(root), "--output", str(tmp_path / "run"), "--device", "cpu"]
    with file_size_limit(100_000):
        assert main(["train", *arguments, *CHANGES]) == 1
    assert "step-00000000.pt cannot be used (File too large)" in capsys.readouterr().err.splitlines()[-1]
