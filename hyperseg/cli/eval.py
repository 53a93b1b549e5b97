"""Score a network, or predictions that are files already, on a data set.

Labels and predictions are compared at the size of the labels. Both protocols are computed: `standard` leaves classes
that do not occur out of the mean, as benchmarks do; `official` counts them as 0, as the authors' test does. Every score
is printed with its protocol. --json writes all scores, the confusion matrix and the settings; --report an HTML page.

With torchrun several processes share the images, each exactly once.

One bad file does not end the run: all are named. But a score of fewer images is not that of the data set, so unless
--skip-bad is given --json and --report write nothing then. Predictions are written as they are made.

Exit codes: 0: done. 1: a file was bad, there was no labelled pixel (unless only predictions were to be written), or
nothing could be done. 2: the command line is not valid. 3: done, but bad files were left out (--skip-bad). 130:
interrupted.
"""

import argparse
import contextlib
import os
import sys
from typing import TYPE_CHECKING, Any

from hyperseg._files import printable
from hyperseg._launcher import launched
from hyperseg._text import counted
from hyperseg.cli import _common, _datasets, _eval_options
from hyperseg.cli._common import UsageError, UserError, user_errors
from hyperseg.cli._eval_files import warn, write_files
from hyperseg.cli._output import write_line

if TYPE_CHECKING:
    import torch

    from hyperseg._processes import Processes
    from hyperseg.data.dataset import Dataset
    from hyperseg.data.labels import LabelSet
    from hyperseg.evaluation import Evaluation
    from hyperseg.evaluation.evaluator import Labeller
    from hyperseg.evaluation.submission import PredictionWriter


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    _eval_options.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run the verb; return the exit code."""
    _eval_options.check(args)
    # A process alone opens the data set before torch is imported: a wrong path is reported at once.
    dataset = None if launched() else _datasets.open_dataset(args)
    from hyperseg._processes import ProcessLostError, local_device, processes

    device = local_device(_common.pick_device(args.device))
    with user_errors(ProcessLostError), contextlib.ExitStack() as stack:
        with user_errors(ValueError):
            group = stack.enter_context(processes(device, minutes=30))
        if dataset is None:
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(sys.stderr if group.first else nowhere):
                dataset = _datasets.open_dataset(args)
        return _run(args, dataset, device, group)


def _run(args: argparse.Namespace, dataset: "Dataset", device: "torch.device", group: "Processes") -> int:
    from hyperseg.data.errors import DataError
    from hyperseg.evaluation.evaluator import evaluate
    from hyperseg.evaluation.protocols import NoLabelledPixelError
    from hyperseg.evaluation.results import text_table
    from hyperseg.ops import BackendError
    from hyperseg.runtime import EngineError

    errors: list[str] = []
    labeller, table, settings, skipped = _labeller(args, dataset, device)
    settings["processes"] = group.world
    writers = _writers(args, dataset, table, labeller)
    with _bar(len(dataset), group) as bar:

        def on_error(message: str) -> None:
            errors.append(message)
            write_line(f"hyperseg eval: {printable(message)}", sys.stderr)

        try:
            evaluation = evaluate(
                dataset,
                labeller,
                settings,
                root=args.root,
                boundary_ratio=args.boundary_ratio or None,
                workers=args.workers,
                writers=writers,
                on_error=on_error,
                progress=lambda done, total: bar.update(),
            )
        except NoLabelledPixelError as error:
            if not writers or args.json or args.report:
                raise UserError(f"{error}{'; the predictions are written' if writers else ''}") from None
            warn(f"the predictions are written, but not scored: {error}")
            return 1 if errors else 0
        except (DataError, BackendError, EngineError, ValueError) as error:
            raise UserError(str(error)) from None
        except OSError as error:
            folders = [folder for folder in (args.save_predictions, args.submission) if folder]
            place = " and ".join(map(printable, folders))
            raise UserError(f"the predictions cannot be written to {place} ({_common.reason(error)})") from None
    evaluation.skipped.extend(skipped)
    if not group.first:
        return _code(args, evaluation)
    warn(*skipped, *_hints(args, evaluation))
    complete = args.skip_bad or not evaluation.errors
    try:
        write_line(text_table(evaluation), sys.stdout)
    finally:  # the scores may have taken hours: a closed pipe or a full disk is not to lose them
        if complete:
            write_files(args, evaluation, dataset, labeller)
    if not complete:
        asked = [option for option, file in (("--json", args.json), ("--report", args.report)) if file]
        files = f", and {' and '.join(asked)} {'are' if len(asked) > 1 else 'is'} not written" if asked else ""
        count = f"{len(evaluation.errors)} of {counted(len(dataset), 'image')} could not be scored"
        raise UserError(f"{count}, so this is no score of the data set{files}; correct them, or give --skip-bad")
    return _code(args, evaluation)


def _code(args: argparse.Namespace, evaluation: "Evaluation") -> int:
    return 0 if not evaluation.errors else 3 if args.skip_bad else 1


def _labeller(
    args: argparse.Namespace, dataset: "Dataset", device: "torch.device"
) -> tuple["Labeller", "LabelSet", dict[str, Any], list[str]]:
    """Return what makes the predictions, their classes, the settings, and messages about what is left out."""
    import torch

    from hyperseg.data.errors import DataError
    from hyperseg.evaluation.predictions import PredictionFolder

    common = {"device": str(device), "torch": torch.__version__}
    if args.predictions is None:
        labeller, table, settings = _network_labeller(args, dataset, device)
        return labeller, table, settings | common, []
    with user_errors(DataError):
        folder = PredictionFolder(args.predictions, dataset, args.prediction_ids, device)
    skipped = []
    if folder.unused:
        count = counted(len(folder.unused), "PNG")
        verb = "belongs" if len(folder.unused) == 1 else "belong"
        skipped.append(f"{count} of {args.predictions} {verb} to no image, such as {folder.unused[0].name}")
    settings = {"predictions": args.predictions, "prediction_ids": args.prediction_ids}
    return folder, dataset.label_set, settings | common, skipped


def _network_labeller(
    args: argparse.Namespace, dataset: "Dataset", device: Any
) -> tuple["Labeller", "LabelSet", dict[str, Any]]:
    import torch

    from hyperseg.data.errors import DataError
    from hyperseg.evaluation.classes import match_classes
    from hyperseg.evaluation.inference import Inference, NetworkLabeller
    from hyperseg.models.state import weights_hash
    from hyperseg.predict import label_set_of, parse_size

    with user_errors(ValueError, prefix="--size: ", to=UsageError):
        parse_size(args.size, resolution=(1, 1))  # before the network is loaded, which takes a while
    network = _common.load_network(args.weights, args.model)
    config, checksum = network.config, weights_hash(network)
    if args.weights is None:
        warn(f"no --weights: {config.name} runs with random weights, so its scores mean nothing")
    table = label_set_of(config)
    with user_errors(DataError):
        warn(*match_classes(table, dataset.label_set))
    pads = config.dataset == "voc" and args.size == "model"
    mean, std = _eval_options.NORMALISE.get(args.normalise, (config.mean, config.std))
    with user_errors(ValueError, to=UsageError):
        inference = Inference(
            size=parse_size(args.size, config.resolution),
            resize=args.resize or ("pad" if pads else "bilinear"),
            scales=tuple(args.scales),
            flip=args.flip,
            combine=args.combine,
            window=args.window,
            stride=args.stride,
            mean=mean,
            std=std,
            engine=not args.module,
            dtype=getattr(torch, args.dtype),
            device=device,
            backend=args.backend,
            batch=args.batch,
        )
    with user_errors(ValueError):
        labeller = NetworkLabeller(network, inference)
    single = inference.scales == (1.0,) and not inference.flip
    return (
        labeller,
        table,
        {
            "model": config.name,
            "weights": args.weights,
            "random_weights": args.weights is None,
            "weights_hash": checksum,
            "runs_as": "module" if args.module else "engine",
            "dtype": args.dtype,
            "backend": args.backend,
            "batch": args.batch,
            "size": "native" if inference.size is None else _named(inference.size),
            "resize": inference.resize,
            "scales": list(inference.scales),
            "flip": inference.flip,
            "combine": None if single else inference.combine,
            "window": _named(inference.window),
            "stride": _named(inference.stride),
            "mean": list(mean),
            "std": list(std),
        },
    )


def _writers(
    args: argparse.Namespace, dataset: "Dataset", table: "LabelSet", labeller: "Labeller"
) -> list["PredictionWriter"]:
    from hyperseg.data.errors import DataError
    from hyperseg.evaluation.predictions import PredictionFolder
    from hyperseg.evaluation.submission import PalettePredictions, submission

    writers: list[PredictionWriter] = []
    if args.save_predictions is not None:
        writers.append(PalettePredictions(args.save_predictions, table))
    if args.submission is not None:
        with user_errors(DataError):
            writers.append(submission(args.submission, dataset))
    files = [file for item in dataset.items for file in (item.image, item.label) if file is not None]
    inputs = {os.path.realpath(file.path) for file in files}
    if isinstance(labeller, PredictionFolder):
        inputs |= set(map(os.path.realpath, labeller.files))
    for writer in writers:
        for item in dataset.items:
            if os.path.realpath(path := writer.path(item)) in inputs:
                raise UserError(f"{printable(path)} is one of the inputs and would be overwritten; give another folder")
    return writers


def _hints(args: argparse.Namespace, evaluation: "Evaluation") -> list[str]:
    """Return what probably went wrong."""
    other, total = sum(evaluation.other_predictions), sum(map(sum, evaluation.confusion))
    if args.predictions is None or args.prediction_ids != "classes" or other <= 0.02 * (total + other):
        return []
    from hyperseg.data.labels import CITYSCAPES

    cityscapes = tuple(each["name"] for each in evaluation.classes) == CITYSCAPES.classes
    advice = "; if they are label ids, give --prediction-ids labelIds" if cityscapes else ""
    share = f"{100 * other / (total + other):.1f} % of the labelled pixels"
    return [f"the predictions of {share} are no class of the data set, and count as wrong{advice}"]


def _bar(total: int, group: "Processes") -> Any:
    from tqdm import tqdm

    hidden = not group.first or total < 2 or not sys.stderr.isatty()
    return tqdm(desc="eval", total=-(-total // group.world), unit="image", disable=hidden, file=sys.stderr)


def _named(size: tuple[int, int] | None) -> str | None:
    return None if size is None else f"{size[0]}x{size[1]}"
