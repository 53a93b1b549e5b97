"""Model cards: what they say, the metadata that the Hub reads, and evaluations that belong to other networks."""

import json
from dataclasses import replace

import numpy as np
import pytest
import yaml

from hyperseg.data import CAMVID
from hyperseg.evaluation import Evaluation
from hyperseg.evaluation.results import scored
from hyperseg.models import create_model
from hyperseg.models.state import weights_hash
from hyperseg.publish import PublishError, check_evaluation, model_card, read_evaluation
from hyperseg.publish.card import is_unedited
from tests import golden


@pytest.fixture(scope="module")
def network():
    return golden.golden_model("hyperseg-s-camvid").eval()


@pytest.fixture(scope="module")
def evaluation(network):
    confusion, other = np.diag(np.arange(12)) + 1, np.zeros(12, np.int64)
    settings = {
        "model": "hyperseg-s-camvid",
        "weights": "/home/me/run/final",
        "random_weights": False,
        "weights_hash": weights_hash(network),
        "size": "576x768",
        "scales": [1.0],
        "flip": False,
    }
    return Evaluation(
        data={
            "name": "camvid",
            "split": "test",
            "form": "folders",
            "root": "/data",
            "images": 2,
            "manifest_hash": "ab" * 32,
        },
        classes=[{"name": name, "color": [0, 0, 0]} for name in CAMVID.classes],
        ignore_index=255,
        settings=settings,
        confusion=confusion.tolist(),
        other_predictions=other.tolist(),
        protocols=scored(confusion, other),
        boundary_iou={"miou": 0.4, "per_class": [0.4] * 12, "ratio": 0.02, "distances": {"6x6": 1}},
        images=[{"name": f"i{n}", "miou": 0.5, "pixel_accuracy": 0.5, "labelled_pixels": 4} for n in range(2)],
    )


def metadata(card) -> dict:
    return yaml.safe_load(str(card).split("---\n")[1])


def test_a_card_without_scores(network):
    card = model_card(network, "me/streets", "cc-by-nc-4.0")
    assert metadata(card) == {
        "library_name": "hyperseg",
        "license": "cc-by-nc-4.0",
        "pipeline_tag": "image-segmentation",
        "tags": ["hyperseg", "semantic-segmentation", "real-time", "camvid"],
    }
    text = str(card)
    assert "# streets\n" in text
    assert "hyperseg predict street.jpg --weights hf-hub:me/streets\n" in text
    assert 'hyperseg.load("hf-hub:me/streets")' in text
    assert "| network | `hyperseg-s-camvid` |" in text
    assert "| parameters | 9.9 M |" in text
    assert "| 3 | Road | `#804080` |" in text
    assert "No scores were given" in text
    assert "under the licence cc-by-nc-4.0" in text
    assert "@inproceedings{nirkin2021hyperseg," in text


def test_a_card_with_scores(network, evaluation):
    card = model_card(network, "me/streets", "mit", evaluation=evaluation)
    found = metadata(card)
    assert found["metrics"] == ["mean_iou"]
    (entry,) = found["model-index"]
    assert entry["name"] == "streets"
    (result,) = entry["results"]
    assert result["task"] == {"type": "image-segmentation", "name": "Semantic segmentation"}
    assert result["dataset"] == {"name": "CamVid", "type": "camvid", "split": "test"}
    miou = round(100 * evaluation.protocols["standard"]["miou"], 2)
    metrics = {(metric["type"], metric["name"]): metric["value"] for metric in result["metrics"]}
    assert metrics["mean_iou", "mIoU in percent, protocol standard"] == miou
    assert set(metrics) == {
        ("mean_iou", "mIoU in percent, protocol standard"),
        ("mean_iou", "mIoU in percent, protocol official"),
        ("accuracy", "Pixel accuracy in percent"),
    }
    text = str(card)
    assert f"| mIoU, protocol standard | {miou:.2f} (mean over the 12 of 12 classes" in text
    assert "| boundary IoU | 40.00 (within 0.02 of the diagonal) |" in text
    assert "| data | camvid, split test: folders |" in text
    assert "| images | 2 |" in text
    assert "| manifest of the data | `abababababababab` |" in text
    assert "| size | 576x768 |" in text
    assert "| index | class | colour | IoU standard | IoU official |" in text
    assert "/home" not in text  # paths of the machine are private
    assert "/data" not in text
    partial = replace(evaluation, images=evaluation.images[:1])
    assert "| images | ONLY 1 of 2 are scored |" in str(model_card(network, "me/streets", "mit", evaluation=partial))


def test_names_of_classes_are_text(network):
    names = ("a|b", "<b>bold</b>", "new\nline", "`code`", "[x](http://evil)", *map(str, range(5, 12)))
    other = create_model("hyperseg-s-camvid", dataset="custom", class_names=names)
    text = str(model_card(other, "me/streets", "mit"))
    assert "| 0 | a&#124;b | `#" in text
    assert "<b>" not in text
    assert "| 2 | new line | `#" in text
    assert "](http://evil)" not in text
    assert "| classes | 12 (of its own) |" in text


def test_edited_cards(network, evaluation):
    card = str(model_card(network, "me/streets", "mit", evaluation=evaluation))
    assert is_unedited(card)
    assert is_unedited(card.replace("\n", "\r\n"))
    assert not is_unedited(card.replace("license: mit", "license: apache-2.0"))
    assert not is_unedited(card + "More.\n")
    assert not is_unedited("# My network\n")
    assert not is_unedited("")


def test_licences(network):
    for text in ("My own licence", "MIT", "", "a\nb"):
        with pytest.raises(PublishError, match=r"cannot be right; give the Hub's abbreviation, such as apache-2.0"):
            model_card(network, "me/streets", text)
    with pytest.raises(PublishError, match="the license is other; give the link to its text too"):
        model_card(network, "me/streets", "other")
    found = metadata(model_card(network, "me/streets", "other", "https://example.org/terms"))
    assert found["license"] == "other"
    assert found["license_name"] == "streets-license"
    assert found["license_link"] == "https://example.org/terms"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"predictions": "folder"}, "scores prediction files, so it says nothing about this network; give the evalua"),
        ({"model": "hyperseg-s-camvid", "random_weights": True}, "scores random weights; .*hyperseg eval --weights"),
        ({"model": "hyperseg-l-voc"}, "is of hyperseg-l-voc, and the folder has hyperseg-s-camvid"),
        (
            {"model": "hyperseg-s-camvid", "weights": "other.pth", "weights_hash": "00"},
            r"is of other weights of hyperseg-s-camvid \(other.pth\)",
        ),
    ],
)
def test_evaluations_of_something_else(network, evaluation, settings, message):
    with pytest.raises(PublishError, match=message):
        check_evaluation(network, replace(evaluation, settings=settings))


def test_a_class_that_the_data_lacks(network, evaluation):
    protocols = {
        name: {**scores, "per_class": scores["per_class"][1:]} for name, scores in evaluation.protocols.items()
    }
    other = replace(evaluation, classes=evaluation.classes[1:], protocols=protocols)
    rows = [line for line in str(model_card(network, "me/x", "mit", evaluation=other)).splitlines() if "`#" in line]
    assert rows[0] == "| 0 | Sky | `#808080` | - | - |"
    iou = 100 * protocols["standard"]["per_class"][0]
    assert rows[1] == f"| 1 | Building | `#800000` | {iou:.2f} | {iou:.2f} |"


def test_files_with_evaluations(evaluation, tmp_path):
    evaluation.save(tmp_path / "scores.json")
    assert read_evaluation(tmp_path / "scores.json") == evaluation
    for data in (b"{}", b"[]", b"{", b"\xff"):
        (tmp_path / "bad.json").write_bytes(data)
        with pytest.raises(PublishError, match=r"bad.json: "):
            read_evaluation(tmp_path / "bad.json")
    (tmp_path / "bad.json").write_text(json.dumps({"images": []}))
    with pytest.raises(PublishError, match=r"this is no evaluation: data, .*missing; give what hyperseg eval --json"):
        read_evaluation(tmp_path / "bad.json")
    with pytest.raises(PublishError, match=r"none.json cannot be read \(No such file or directory\)"):
        read_evaluation(tmp_path / "none.json")
