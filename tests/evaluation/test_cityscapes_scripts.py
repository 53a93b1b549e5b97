"""Cityscapes' own evaluation scripts count the same in the same PNGs."""

import numpy as np
import pytest
from PIL import Image

from hyperseg.data import open_dataset
from hyperseg.data.cityscapes import TRAIN_ID_TO_ID
from hyperseg.evaluation.evaluator import evaluate
from hyperseg.evaluation.predictions import PredictionFolder
from hyperseg.evaluation.submission import CityscapesSubmission
from tests.data.trees import picture, save

pytest.importorskip("cityscapesscripts")

COUNT = 200
IDS = list(TRAIN_ID_TO_ID)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A tree of random label ids, predictions in label ids, and cityscapesscripts' result."""
    root = tmp_path_factory.mktemp("cityscapes")
    rng = np.random.default_rng(3)
    predictions, labels = [], []
    for number in range(COUNT):
        size = tuple(int(side) for side in rng.integers(4, 30, 2))
        name = f"town_{number:06d}_000019"
        truth = rng.choice(rng.choice(34, rng.integers(1, 34), replace=False), size).astype(np.uint8)
        # Classes that are scored, mostly right; and some that are not, which count as wrong.
        found = np.where((rng.random(size) < 0.5) & np.isin(truth, IDS), truth, rng.choice(IDS[:-2], size))
        found = np.where(rng.random(size) < 0.05, rng.integers(0, 7, size), found).astype(np.uint8)
        save(picture(size, number), root / f"leftImg8bit/val/town/{name}_leftImg8bit.png")
        save(truth, root / f"gtFine/val/town/{name}_gtFine_labelIds.png")
        save(found, root / f"predictions/{name}_pred.png")
        labels.append(str(root / f"gtFine/val/town/{name}_gtFine_labelIds.png"))
        predictions.append(str(root / f"predictions/{name}_pred.png"))
    return root, scripts(predictions, labels)


def scripts(predictions, labels):
    """Return the confusion matrix over ids 0 to 33 and the scores of cityscapesscripts."""
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as module

    args = module.args
    args.evalInstLevelScore, args.evalPixelAccuracy, args.JSONOutput, args.quiet = False, False, False, True
    confusion = module.generateMatrix(args)
    for prediction, label in zip(predictions, labels, strict=True):
        module.evaluatePair(prediction, label, confusion, {}, {}, args)
    scores = {
        name: module.getIouScoreForLabel(label.id, confusion, args)
        for name, label in module.name2label.items()
        if label.id in args.evalLabels
    }
    return np.asarray(confusion).astype(np.int64), scores, module.getScoreAverage(scores, args)


def test_equal_to_the_last_count(pairs):
    root, (confusion, scores, mean) = pairs
    dataset = open_dataset("cityscapes", root, "val")
    result = evaluate(dataset, PredictionFolder(root / "predictions", dataset, "labelIds"))
    assert result.errors == []
    assert len(result.images) == COUNT
    inner = confusion[np.ix_(IDS, IDS)]
    assert result.confusion == inner.tolist()
    assert result.other_predictions == (confusion[IDS].sum(1) - inner.sum(1)).tolist()
    assert sum(result.other_predictions) > 1000
    standard = result.protocols["standard"]
    ours = [np.nan if value is None else value for value in standard["per_class"]]
    assert ours == pytest.approx([scores[each["name"]] for each in result.classes], abs=1e-12, nan_ok=True)
    assert standard["miou"] == pytest.approx(mean, abs=1e-12)


def test_the_server_s_files_are_found_and_score_the_same(pairs, tmp_path):
    """Predictions written for the server, read by the scripts as they find them and by ours."""
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as module

    root, _ = pairs
    dataset = open_dataset("cityscapes", root, "val").subset(range(20))
    given = PredictionFolder(root / "predictions", dataset, "labelIds")
    writer = CityscapesSubmission(tmp_path)
    for index, item in enumerate(dataset.items):
        size = Image.open(item.label.path).size[::-1]
        classes = np.minimum(given.prepare(dataset.items[index], None, size), 18)
        assert (np.asarray(Image.open(writer.write(item, classes))) == np.array(IDS)[classes]).all()
    labels = [item.label.path for item in dataset.items]
    module.args.predictionPath, module.args.predictionWalk = str(tmp_path), None
    _, _, mean = scripts([module.getPrediction(module.args, label) for label in labels], labels)
    result = evaluate(dataset, PredictionFolder(tmp_path, dataset, "labelIds"))
    assert result.protocols["standard"]["miou"] == pytest.approx(mean, abs=1e-12)
    assert sum(result.other_predictions) == 0
