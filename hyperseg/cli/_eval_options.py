"""The options of `hyperseg eval`, and what of them can be checked before anything is loaded."""

import argparse
import os

from hyperseg.cli import _common, _datasets
from hyperseg.cli._common import UsageError, UserError

# Mean and standard deviation by the values of --normalise; "config" is the network's own.
NORMALISE = {"imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))}
# Options that concern a network alone.
_OF_NETWORKS = (
    *("size", "resize", "scales", "flip", "combine", "window", "stride", "normalise", "module", "dtype", "backend"),
    *("batch", "model", "weights"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    default, text = "(default: %(default)s)", _common.text
    _datasets.add_dataset_arguments(parser)

    add = parser.add_argument_group("what is scored").add_argument
    add("--weights", metavar="FILE", type=text, help=f"trained weights: {_common.WEIGHTS}")
    add("--model", metavar="NAME", type=text, help=_common.MODEL)
    add("--offline", action="store_true", help=_common.OFFLINE)
    predictions = "label PNGs of any model, NAME.png or NAME_labels.png with an index per pixel, instead of a network"
    add("--predictions", metavar="DIR", type=text, help=predictions)
    ids = "what their indices are: the data set's classes, or Cityscapes' label ids (road is 7)"
    add("--prediction-ids", choices=("classes", "labelIds"), default="classes", help=f"{ids} {default}")

    add = parser.add_argument_group("how the network runs").add_argument
    size = "native (each image's own), model (that of the published test) or HEIGHTxWIDTH; scores are resized back"
    add("--size", type=text, default="native", help=f"{size} {default}")
    resize = "how images get that size (default: pad for a network of PASCAL VOC with --size model, else bilinear)"
    add("--resize", choices=("bilinear", "pad"), help=resize)
    add("--scales", type=float, nargs="+", default=[1.0], metavar="S", help="factors of that size (default: 1)")
    add("--flip", action="store_true", help="also run the mirrored images")
    combine = (
        "how scales and flips are combined: the mean of their probabilities or scores, or the official code's maximum "
        "over flips and halving mean over scales"
    )
    add("--combine", choices=("softmax", "logits", "official"), default="softmax", help=f"{combine} {default}")
    add("--window", metavar="HxW", type=_sides, help="run on windows of this size; scores are averaged in overlaps")
    add("--stride", metavar="HxW", type=_sides, help="distance of the windows (default: two thirds of their size)")
    normalise = "mean and standard deviation: the network's own, ImageNet's, or 0.5 (the published test on PASCAL VOC)"
    add("--normalise", choices=("config", "imagenet", "half"), default="config", help=f"{normalise} {default}")
    add("--module", action="store_true", help="run the PyTorch module instead of the engine")
    dtypes = ("float32", "float16", "bfloat16")
    add("--dtype", choices=dtypes, default="float32", help=f"the precision that the network runs in {default}")
    backends = ("auto", "reference", "cpp", "triton", "cuda")
    add("--backend", choices=backends, default="auto", help=f"of the operators {default}")
    add("--batch", type=_count, default=1, metavar="N", help=f"images per call, if they have one size {default}")
    add("--device", type=text, default="auto", help=f"{_common.DEVICE} {default}")

    add = parser.add_argument_group("scores and files").add_argument
    ratio = "width of the bands of the boundary IoU as a part of the image's diagonal; 0: it is not computed"
    add("--boundary-ratio", type=_ratio, default=0.02, metavar="R", help=f"{ratio} {default}")
    add("--json", metavar="FILE", type=text, help="write everything as JSON")
    add("--report", metavar="FILE", type=text, help="write an HTML page with pictures")
    add("--save-predictions", metavar="DIR", type=text, help="write the predictions as palette PNGs of class indices")
    submission = "write the files that the server of Cityscapes (label ids) or PASCAL VOC takes"
    add("--submission", metavar="DIR", type=text, help=submission)
    skip = "leave out files that cannot be read or do not fit, and say so, instead of failing at the end"
    add("--skip-bad", action="store_true", help=skip)
    add("--workers", type=_count, default=2, metavar="N", help=f"threads that read files {default}")


def check(args: argparse.Namespace) -> None:
    """Check before anything is loaded what can be checked. Raises UserError or UsageError."""
    if args.predictions is not None:
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        given = [name for name in _OF_NETWORKS if getattr(args, name) != parser.get_default(name)]
        if given:
            option = f"--{given[0]}"
            raise UsageError(f"{option} concerns a network, but --predictions scores files; leave one of them out")
    elif args.prediction_ids != "classes":
        raise UsageError("--prediction-ids concerns --predictions DIR, which is not given")
    else:
        args.model = _common.check_network(args.weights, args.model)
    for option, path in (("--json", args.json), ("--report", args.report)):
        if path is not None:
            if os.path.isdir(path):
                raise UserError(f"{option} {path} is a folder; give a file")
            _check_folder(option, os.path.dirname(os.path.abspath(path)))
    if args.json and args.report and os.path.realpath(args.json) == os.path.realpath(args.report):
        raise UsageError(f"--json and --report are both {args.json}; give two files")
    for option, folder in (("--save-predictions", args.save_predictions), ("--submission", args.submission)):
        if folder is not None:
            _check_folder(option, os.path.abspath(folder))


def _check_folder(option: str, folder: str) -> None:
    """Check that a folder exists and can be written to, or can be made."""
    nearest = folder
    while not os.path.lexists(nearest):
        nearest = os.path.dirname(nearest)
    if not os.path.isdir(nearest):
        raise UserError(f"{option}: {nearest} is a file where a folder is needed; give another place")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"{option}: this user may not write to {nearest}; give another place")


def _sides(text: str) -> tuple[int, int]:
    from hyperseg._text import parse_sides

    sides = parse_sides(text)
    if sides is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not understood; give HEIGHTxWIDTH such as 512x1024")
    return sides


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not understood; give a whole number, at least 1")
    return int(text)


def _ratio(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not understood; give a part of the diagonal such as 0.02, or 0")
    return number
