"""Evaluation: how predictions are made and scored on a data set, as published; over models and data, never in them.

    from hyperseg.data import open_dataset
    from hyperseg.evaluation import Inference, NetworkLabeller, evaluate, text_table

    dataset = open_dataset("camvid", "CamVid", "test")
    evaluation = evaluate(dataset, NetworkLabeller(model, Inference(device="cuda")))
    print(text_table(evaluation), evaluation.protocols["standard"]["miou"])

`inference` and `predictions` make or read predictions, `evaluator` compares them with labels into `confusion` and
`boundary`, `protocols` makes scores of counts, `results` is the document of all, `report` its page.
"""

from hyperseg.evaluation.boundary import BoundaryIoU, boundary_distance
from hyperseg.evaluation.confusion import Confusion
from hyperseg.evaluation.evaluator import evaluate
from hyperseg.evaluation.inference import Inference, NetworkLabeller
from hyperseg.evaluation.predictions import PredictionFolder
from hyperseg.evaluation.protocols import NoLabelledPixelError, Scores, official, standard
from hyperseg.evaluation.results import Evaluation, text_table
from hyperseg.evaluation.tta import forward_pyramid

__all__ = [
    "BoundaryIoU",
    "Confusion",
    "Evaluation",
    "Inference",
    "NetworkLabeller",
    "NoLabelledPixelError",
    "PredictionFolder",
    "Scores",
    "boundary_distance",
    "evaluate",
    "forward_pyramid",
    "official",
    "standard",
    "text_table",
]
