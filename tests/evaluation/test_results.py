"""The document of an evaluation and its text table."""

import json
import os

import numpy as np
import pytest

from hyperseg.evaluation import Evaluation, text_table
from hyperseg.evaluation.gallery import choose_images
from hyperseg.evaluation.results import percent, scored


@pytest.fixture
def evaluation():
    confusion, other = np.array([[10, 1, 0], [2, 16, 0], [0, 0, 0]]), np.array([1, 0, 0])
    return Evaluation(
        data={"name": "x", "split": "val", "form": "x\nin y", "root": "y", "images": 3, "manifest_hash": "0123" * 16},
        classes=[{"name": name, "color": [1, 2, 3]} for name in ("road", "car", "nothing")],
        ignore_index=255,
        settings={"model": "m", "flip": False, "scales": [0.5, 1.0], "weights": None, "random_weights": True},
        confusion=confusion.tolist(),
        other_predictions=other.tolist(),
        protocols=scored(confusion, other),
        boundary_iou={
            "miou": 0.4,
            "per_class": [0.5, 0.3, None],
            "ratio": 0.02,
            "distances": {"6x6": 1, "600x800": 20},
        },
        images=[{"name": f"i{n}", "miou": m, "pixel_accuracy": 0.5, "labelled_pixels": 4} for n, m in enumerate("12")],
    )


def test_document_round_trip(evaluation):
    text = json.dumps(evaluation.document(), allow_nan=False)
    again = Evaluation.from_document(json.loads(text))
    assert again == evaluation
    assert json.loads(text)["protocols"]["standard"]["per_class"][2] is None
    assert json.loads(text)["pixel_accuracy"] == pytest.approx(26 / 30)
    assert {"hyperseg", "created", "data", "confusion", "boundary_iou", "errors", "skipped"} <= set(json.loads(text))


def test_another_document(evaluation):
    document = evaluation.document()
    del document["confusion"], document["hyperseg"]
    with pytest.raises(ValueError, match="confusion, hyperseg missing"):
        Evaluation.from_document(document)


def test_save(evaluation, tmp_path):
    evaluation.save(tmp_path / "new" / "e.json")
    assert json.loads((tmp_path / "new" / "e.json").read_text()) == evaluation.document()
    assert os.listdir(tmp_path / "new") == ["e.json"]


def test_every_score_has_its_protocol(evaluation):
    lines = text_table(evaluation).splitlines()
    assert lines[0] == "x val: 3 images; x\\nin y"
    assert lines[1] == "manifest 0123012301230123; model m; scales 0.5 1.0; random_weights yes"
    assert lines[3].split() == ["class", "IoU", "standard", "IoU", "official", "accuracy", "boundary", "IoU"]
    rows = {line.split()[0]: line.split()[1:] for line in lines[5:10] if not line.startswith("-")}
    assert rows["road"] == ["71.43", "71.43", "83.33", "50.00"]
    assert rows["nothing"] == ["-", "0.00", "-", "-"]
    assert rows["mean"] == ["77.82", "51.88", "86.11", "40.00"]
    notes = "\n".join(lines[10:])
    assert "mIoU 77.82 standard: mean over the 2 of 3 classes" in notes
    assert "mIoU 51.88 official: mean over all 3 classes" in notes
    assert "pixel accuracy 86.67, 30 labelled pixels" in notes
    assert "0.02 of the diagonal (1 to 20 pixels)" in notes
    assert "ONLY 2 of 3 images are scored" in notes
    assert "worst" not in notes


def test_worst_and_best_images_are_named(evaluation):
    evaluation.images[:] = [{"name": f"i{n}", "miou": n / 100} for n in range(6)] + [{"name": "void", "miou": None}]
    lines = text_table(evaluation).splitlines()
    assert "worst images by their own standard mIoU: i0 0.00, i1 1.00, i2 2.00" in lines
    assert "best images by their own standard mIoU: i5 5.00, i4 4.00, i3 3.00" in lines


def test_percent():
    assert (percent(None), percent(0.0), percent(1.0), percent(0.518797)) == ("-", "0.00", "100.00", "51.88")


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 8, 9, 30])
def test_choice_of_images(evaluation, count):
    scores = np.random.default_rng(0).permutation(count) / 100
    evaluation.images[:] = [{"name": f"i{n}", "miou": float(score)} for n, score in enumerate(scores)]
    evaluation.images.append({"name": "void", "miou": None})
    chosen = choose_images(evaluation)
    names = [name for group in chosen.values() for name in group]
    assert len(names) == len(set(names)) == min(count, 12)
    assert "void" not in names
    rank = {f"i{n}": score for n, score in enumerate(scores)}
    assert [rank[name] for name in chosen["worst"]] == sorted(scores)[: len(chosen["worst"])]
    assert [rank[name] for name in chosen["best"]] == sorted(scores, reverse=True)[: len(chosen["best"])]
    assert choose_images(evaluation) == chosen
    assert count < 30 or choose_images(evaluation, seed=1)["random"] != chosen["random"]
