"""The files and messages of `hyperseg eval`."""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hyperseg._files import printable
from hyperseg.cli import _common
from hyperseg.cli._common import UserError
from hyperseg.cli._output import write_line

if TYPE_CHECKING:
    from hyperseg.data.dataset import Dataset
    from hyperseg.evaluation import Evaluation
    from hyperseg.evaluation.evaluator import Labeller


def write_files(args: argparse.Namespace, evaluation: "Evaluation", dataset: "Dataset", labeller: "Labeller") -> None:
    """Write --json and --report; if one cannot be written, the other still is."""
    failed = []
    if args.json:
        try:
            evaluation.save(args.json)
        except OSError as error:
            failed.append(f"--json {args.json}: {_common.reason(error)}")
    if args.report:
        try:
            _report(args, evaluation, dataset, labeller)
        except OSError as error:
            failed.append(f"--report {args.report}: {_common.reason(error)}")
    if failed:
        raise UserError("; ".join(failed))


def _report(args: argparse.Namespace, evaluation: "Evaluation", dataset: "Dataset", labeller: "Labeller") -> None:
    from hyperseg.data.errors import DataError
    from hyperseg.evaluation.evaluator import predict_items
    from hyperseg.evaluation.gallery import choose_images
    from hyperseg.evaluation.report import GalleryImage, write_report

    scores = {image["name"]: image["miou"] for image in evaluation.images}

    def pictures(name: str, group: str) -> list[GalleryImage]:
        try:
            return [GalleryImage(*each, scores[name], group) for each in predict_items(dataset, labeller, [name])]
        except DataError as error:  # files of predictions are scored without the images
            warn(f"the report has no pictures of {name}: {error}")
            return []

    chosen = [(name, group) for group, names in choose_images(evaluation).items() for name in names]
    gallery = [picture for name, group in chosen for picture in pictures(name, group)]
    write_report(evaluation, gallery, Path(args.report), args.command_line)


def warn(*messages: str) -> None:
    """Print messages once, not in each process."""
    for message in messages if os.environ.get("RANK", "0") == "0" else ():
        write_line(f"hyperseg eval: {printable(message)}", sys.stderr)
