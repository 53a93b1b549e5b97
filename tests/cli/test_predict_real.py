"""`hyperseg predict` with a true network and engine, from weights in every format, on photographs."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import hyperseg
from hyperseg.cli import main
from hyperseg.data import CAMVID
from hyperseg.predict import predictor
from tests.predict.networks import segment

NAME = "hyperseg-s-camvid"


@pytest.fixture(scope="module", autouse=True)
def one_comparison():
    """Compare the first engine alone with its module: the tests compare the labels of all of them."""
    built = []

    def build_engine(model, check, plain=predictor.build_engine, **settings):
        built.append(plain(model, check=check and not built, **settings))
        return built[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predictor, "build_engine", build_engine)
        yield


def predict(*arguments):
    assert main(["predict", *map(str, arguments), "--device", "cpu"]) == 0


def labels_of(path):
    image = Image.open(path)
    assert image.mode == "P"
    return np.asarray(image)


def agreement(a, b):
    """The share of equal labels. Engine and module sum in different orders, which may decide near-ties differently."""
    assert a.shape == b.shape
    return (a == b).mean()


def test_every_format_of_weights(true_network, folder, images, capsys):
    image = images["voc"][100:231, 120:307]  # 131 x 187: neither side fits the network
    Image.fromarray(image).save("street.png")
    expected = segment(true_network.model, image)
    assert len(np.unique(expected)) > 3
    found = {}
    for kind, path in true_network.weights.items():
        predict("street.png", "--weights", path, "--output", kind, "--no-overlay")
        found[kind] = labels_of(f"{kind}/street_labels.png")
    assert agreement(found["official"], expected) > 0.999
    assert np.array_equal(found["official"], found["folder"])
    assert np.array_equal(found["official"], found["safetensors"])
    assert "random" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("official", "official.pth does not fit the network"),
        ("folder", "own contains hyperseg-s-camvid, not hyperseg-m-cityscapes."),
    ],
)
def test_weights_of_another_network(true_network, folder, images, capsys, kind, reason):
    Image.fromarray(images["chelsea"][:32, :32]).save("cat.png")
    assert main(["predict", "cat.png", "--weights", str(true_network.weights[kind]), "--model", "hyperseg-m"]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert reason in err
    assert "(the file says that it is hyperseg-s-camvid; leave --model out)" in err


def test_weights_that_do_not_name_their_network(true_network, folder, images, capsys):
    """The advice about a wrong --model is not to leave it out, because without it the file cannot be loaded."""
    torch.save(torch.load(true_network.weights["official"])["state_dict"], "bare.pth")
    Image.fromarray(images["chelsea"][:32, :32]).save("cat.png")
    assert main(["predict", "cat.png", "--weights", "bare.pth"]) == 1
    assert "give its name" in capsys.readouterr().err
    assert main(["predict", "cat.png", "--weights", "bare.pth", "--model", "hyperseg-m"]) == 1
    assert "(--model says that it is hyperseg-m-cityscapes; give the network that it was" in capsys.readouterr().err
    predict("cat.png", "--weights", "bare.pth", "--model", NAME)


def test_resized(true_network, folder, images, capsys):
    """Logits, not labels, are resized back: the edges of regions are not blocks."""
    Image.fromarray(images["chelsea"]).save("cat.png")
    predict("cat.png", "--weights", true_network.weights["folder"], "--size", "96x128", "--json", "--legend")
    (record,) = json.loads(capsys.readouterr().out)["images"]
    assert record["network_size"] == [96, 128]
    labels = labels_of("predictions/cat_labels.png")
    assert agreement(labels, segment(true_network.model, images["chelsea"], (96, 128))) > 0.999
    counted = {share["name"]: share["pixels"] for share in record["classes"]}
    assert counted == {CAMVID.classes[i]: n for i, n in enumerate(np.bincount(labels.ravel()).tolist()) if n}
    assert Image.open("predictions/cat_overlay.png").size[1] > 300


@pytest.mark.parametrize("size", [(1, 1), (3, 70), (33, 31)])
def test_small_images(true_network, folder, images, size):
    image = images["rocket"][: size[0], : size[1]]
    Image.fromarray(image).save("small.png")
    predict("small.png", "--weights", true_network.weights["folder"], "--legend")
    assert agreement(labels_of("predictions/small_labels.png"), segment(true_network.model, image)) > 0.98


@pytest.mark.filterwarnings("error")
def test_random_weights(folder, images, capsys):
    """There is a warning, the weights are the same each time, and PyTorch's generator is left alone."""
    Image.fromarray(images["coffee"][:64, :96]).save("cup.png")
    torch.manual_seed(5)
    before = torch.get_rng_state()
    predict("cup.png", "--model", NAME)
    assert torch.equal(torch.get_rng_state(), before)
    first = labels_of("predictions/cup_labels.png")
    out, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert "runs with random weights, so its labels mean nothing" in err
    assert out.startswith("cup.png (64x96) -> predictions/cup_labels.png, predictions/cup_overlay.png\n")
    predict("cup.png", "--model", NAME, "--no-overlay")
    assert np.array_equal(labels_of("predictions/cup_labels.png"), first)


@pytest.mark.filterwarnings("ignore:The network gives the same logits everywhere")
def test_classes_of_your_own(folder, images, capsys):
    model = hyperseg.create_model(NAME, num_classes=3, class_names=("cup", "saucer", "table"))
    hyperseg.save(model, "mine")
    Image.fromarray(images["coffee"][:64, :96]).save("cup.png")
    predict("cup.png", "--weights", "mine", "--json")
    (record,) = json.loads(capsys.readouterr().out)["images"]
    assert {share["name"] for share in record["classes"]} <= {"cup", "saucer", "table"}
