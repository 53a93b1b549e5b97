"""`hyperseg predict` with a true network and engine, from weights in every format, on photographs.

The weights are those of the golden tests: untrained, but with answers that differ from pixel to pixel.
"""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import hyperseg
from hyperseg.cli import main
from hyperseg.data import CAMVID
from hyperseg.models import save_official
from hyperseg.predict import segment
from tests import golden

NAME = "hyperseg-s-camvid"


@pytest.fixture(scope="module")
def model():
    return golden.golden_model(NAME).eval()


@pytest.fixture(scope="module")
def weights(model, tmp_path_factory):
    """The same weights as an official .pth, as a folder of ours and as its safetensors file."""
    folder = tmp_path_factory.mktemp("weights")
    save_official(model, folder / "official.pth")
    hyperseg.save(model, folder / "own")
    return {
        "official": folder / "official.pth",
        "folder": folder / "own",
        "safetensors": folder / "own" / "model.safetensors",
    }


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def predict(*arguments):
    assert main(["predict", *map(str, arguments), "--device", "cpu"]) == 0


def labels_of(path):
    image = Image.open(path)
    assert image.mode == "P"
    return np.asarray(image)


def agreement(a, b):
    """The share of equal labels; an engine sums in another order than the module, which may tip near-ties."""
    assert a.shape == b.shape
    return (a == b).mean()


def test_every_format_of_weights(model, weights, folder, photos, capsys):
    photo = photos["voc"][100:231, 120:307]  # 131 x 187: neither side fits the network
    Image.fromarray(photo).save("photo.png")
    expected = segment(model, photo)
    assert len(np.unique(expected)) > 3
    found = {}
    for kind, path in weights.items():
        predict("photo.png", "--weights", path, "--output", kind, "--no-overlay")
        found[kind] = labels_of(f"{kind}/photo_labels.png")
    assert agreement(found["official"], expected) > 0.999
    assert np.array_equal(found["official"], found["folder"])
    assert np.array_equal(found["official"], found["safetensors"])
    assert "random" not in capsys.readouterr().err


def test_weights_of_another_network(weights, folder, photos, capsys):
    Image.fromarray(photos["chelsea"][:32, :32]).save("cat.png")
    assert main(["predict", "cat.png", "--weights", str(weights["official"]), "--model", "hyperseg-m"]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "does not fit the network" in err
    assert "--model says that it is hyperseg-m-cityscapes; leave it out" in err


def test_resized(model, weights, folder, photos, capsys):
    """Logits, not labels, are brought back: the edges of regions are not blocks."""
    Image.fromarray(photos["chelsea"]).save("cat.png")
    predict("cat.png", "--weights", weights["folder"], "--size", "96x128", "--json", "--legend")
    (record,) = json.loads(capsys.readouterr().out)["images"]
    assert record["network_size"] == [96, 128]
    labels = labels_of("predictions/cat_labels.png")
    assert agreement(labels, segment(model, photos["chelsea"], (96, 128))) > 0.999
    counted = {share["name"]: share["pixels"] for share in record["classes"]}
    assert counted == {CAMVID.classes[i]: n for i, n in enumerate(np.bincount(labels.ravel()).tolist()) if n}
    assert Image.open("predictions/cat_overlay.png").size[1] > 300


@pytest.mark.parametrize("size", [(1, 1), (3, 70), (33, 31)])
def test_small_photos(model, weights, folder, photos, size):
    photo = photos["rocket"][: size[0], : size[1]]
    Image.fromarray(photo).save("small.png")
    predict("small.png", "--weights", weights["folder"], "--legend")
    assert agreement(labels_of("predictions/small_labels.png"), segment(model, photo)) > 0.98


@pytest.mark.filterwarnings("error")
def test_random_weights_say_so(folder, photos, capsys):
    Image.fromarray(photos["coffee"][:64, :96]).save("cup.png")
    predict("cup.png", "--model", NAME)
    first = labels_of("predictions/cup_labels.png")
    out, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert "runs with random weights, so its labels mean nothing" in err
    assert out.startswith("cup.png (64x96) -> predictions/cup_labels.png\n")
    predict("cup.png", "--model", NAME)
    assert np.array_equal(labels_of("predictions/cup_labels.png"), first), "the random weights are the same each time"


def test_random_weights_leave_the_generator_alone(folder, photos):
    Image.fromarray(photos["coffee"][:64, :64]).save("cup.png")
    torch.manual_seed(5)
    before = torch.get_rng_state()
    predict("cup.png", "--model", NAME, "--no-overlay")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.filterwarnings("ignore:The network gives the same logits everywhere")
def test_classes_of_your_own(folder, photos, capsys):
    model = hyperseg.create_model(NAME, num_classes=3, class_names=("cup", "saucer", "table"))
    hyperseg.save(model, "mine")
    Image.fromarray(photos["coffee"][:64, :96]).save("cup.png")
    predict("cup.png", "--weights", "mine", "--json")
    (record,) = json.loads(capsys.readouterr().out)["images"]
    assert {share["name"] for share in record["classes"]} <= {"cup", "saucer", "table"}
