"""Scores of the final network, as ``hyperseg eval`` computes them: a document and a page to read."""

from collections.abc import Callable
from pathlib import Path

import torch

from hyperseg._processes import Processes
from hyperseg.data.dataset import Dataset
from hyperseg.evaluation import Evaluation
from hyperseg.evaluation.evaluator import evaluate, predict_items
from hyperseg.evaluation.gallery import choose_images
from hyperseg.evaluation.inference import NetworkLabeller
from hyperseg.evaluation.report import GalleryImage, write_report
from hyperseg.models import HyperSeg
from hyperseg.models.state import weights_hash
from hyperseg.training.config import TrainingConfig
from hyperseg.training.validation import inference


def final_scores(
    network: HyperSeg,
    dataset: Dataset,
    config: TrainingConfig,
    folder: Path,
    step: int,
    processes: Processes,
    device: torch.device,
    check: Callable[[], None],
) -> Evaluation:
    """Score the network on a data set; write ``evaluation-SPLIT.json`` and ``report-SPLIT.html`` to the run's folder.

    Args:
        step: of the run, recorded.
        check: called after each image; it may raise an exception to end this.
    """
    labeller = NetworkLabeller(network, inference(config.validation, device))
    size = config.validation.size
    settings = {
        "model": network.config.name,
        "weights": str(folder / "final"),
        "weights_hash": weights_hash(network),
        "encoder_weights": network.config.encoder_weights,
        "runs_as": "module",
        "size": "native" if size is None else f"{size[0]}x{size[1]}",
        "resize": config.validation.resize,
        "device": str(device),
        "torch": torch.__version__,
        "trained_on": "+".join(config.data.train),
        "steps": step,
    }
    evaluation = evaluate(dataset, labeller, settings, root=config.data.root, progress=lambda done, total: check())
    if processes.first:
        evaluation.save(folder / f"evaluation-{dataset.split}.json")
        scores = {image["name"]: image["miou"] for image in evaluation.images}
        gallery = [
            GalleryImage(name, image, labels, predictions, scores[name], group)
            for group, names in choose_images(evaluation).items()
            for name, image, labels, predictions in predict_items(dataset, labeller, names)
        ]
        write_report(evaluation, gallery, folder / f"report-{dataset.split}.html")
    processes.wait()
    return evaluation
