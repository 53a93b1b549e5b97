"""Segment images: write a label PNG and an overlay for each, and print the share of each class.

The labels are written to FOLDER/<stem>_labels.png, where the palette index of a pixel is its class, and the overlay to
FOLDER/<stem>_overlay.png. Images are first turned upright by their EXIF orientation.

One image that cannot be done does not end the run: it is named, and the others are done. Of a folder or pattern,
images of kinds that cannot be read are named and skipped; hidden files, other kinds of files, and the outputs of an
earlier run are left out.

Exit codes: 0: all images are done. 1: an image failed, or nothing could be done. 2: the command line is not valid.
3: all images are done, but others were skipped. 130: interrupted.
"""

import argparse
import json
import sys
import warnings
from typing import TYPE_CHECKING, Any

from hyperseg._files import printable
from hyperseg.cli import _common
from hyperseg.cli._common import UsageError, UserError, user_errors
from hyperseg.cli._output import record, summary, table, write_line

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hyperseg.predict import ImageSource, Predictor, Sink


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    add, default, text = parser.add_argument, "(default: %(default)s)", _common.text
    images = "image files, folders of images, or patterns such as 'images/*.jpg'"
    add("images", nargs="+", metavar="IMAGE", type=text, help=images)
    add("--weights", metavar="FILE", type=text, help=f"trained weights: {_common.WEIGHTS}")
    add("--model", metavar="NAME", type=text, help=_common.MODEL)
    add("--offline", action="store_true", help=_common.OFFLINE)
    add("--output", metavar="FOLDER", type=text, default="predictions", help=f"the folder to write to {default}")
    add("--size", type=text, default="native", help=f"{_SIZE} {default}")
    add("--device", type=text, default="auto", help=f"{_common.DEVICE} {default}")
    dtypes = ("float32", "float16", "bfloat16")
    add("--dtype", choices=dtypes, default="float32", help=f"the precision that the network runs in {default}")
    alpha = f"opacity of the colours in the overlay, from 0 to 1 {default}"
    add("--alpha", type=_common.opacity, default=0.6, help=alpha)
    add("--no-overlay", dest="overlay", action="store_false", help="write the label PNGs only")
    add("--overlay-format", choices=("png", "jpg"), default="png", help=f"file format of the overlays {default}")
    add("--legend", action="store_true", help="add a strip to the overlay that names the classes present")
    add("--json", action="store_true", help="print one JSON document instead of tables")


_SIZE = (
    "the size that the network runs at: native (each image's own), model (the size at which the published network was "
    "tested) or HEIGHTxWIDTH; images are resized to it, and the scores resized back before labels are chosen"
)


def run(args: argparse.Namespace) -> int:
    """Run the verb; return the exit code."""
    name = _common.check_network(args.weights, args.model)

    from hyperseg.ops import BackendError, named_backend
    from hyperseg.predict import ImageSource, LabelSink, OverlaySink, Predictor, find_images, parse_size
    from hyperseg.predict.names import fits

    with user_errors(BackendError, prefix="HYPERSEG_BACKEND: "):
        named_backend()
    with user_errors(ValueError, prefix="--size: ", to=UsageError):
        parse_size(args.size, resolution=(1, 1))  # before the network is loaded, which takes a while
    device = _common.pick_device(args.device)

    errors: list[str] = []
    skipped: list[str] = []
    source = ImageSource(find_images(args.images, lambda error: errors.append(str(error)), skipped.append))
    sinks: dict[str, LabelSink | OverlaySink] = {"labels": LabelSink(args.output)}
    if args.overlay:
        sinks["overlay"] = OverlaySink(args.output, args.alpha, args.legend, args.overlay_format)
    _common.check_outputs(args.output, source.paths, [s.path(name) for s in sinks.values() for name in source.names])
    _warn(*skipped)
    if not len(source):
        raise UserError("; ".join(errors) or "only outputs of an earlier run were found; give images")
    _warn(*errors)
    for path, output in zip(source.paths, source.names, strict=True):
        if output != path.stem:
            reason = f"several images are called {path.stem}" if fits(path.stem) else "the name is too long"
            _warn(f"{reason}; the outputs of {path} are called {output}")

    network = _common.load_network(args.weights, name)
    if args.weights is None:
        meaning = "so its labels mean nothing; this only tries the pipeline"
        _warn(f"no --weights: {name} runs with random weights, {meaning}")
    with user_errors(ValueError):
        predictor = Predictor(network, parse_size(args.size, network.config.resolution), device, args.dtype)
    return _segment(args, predictor, source, sinks, errors, skipped)


def _segment(
    args: argparse.Namespace,
    predictor: "Predictor",
    source: "ImageSource",
    sinks: "Mapping[str, Sink]",
    errors: list[str],
    skipped: list[str],
) -> int:
    """Segment and report the images. `errors` and `skipped` are messages about images that are not in `source`."""
    from tqdm import tqdm

    from hyperseg.ops import BackendError
    from hyperseg.predict import SinkError
    from hyperseg.runtime import EngineError

    records: list[dict[str, Any]] = []
    total = len(source) + len(errors)
    end: Exception | None = None

    def on_error(error: Exception) -> None:
        errors.append(f"{error}; try --size model" if isinstance(error, MemoryError) else str(error))
        _warn(errors[-1])

    hidden = len(source) < 2 or not sys.stderr.isatty()
    bar = tqdm(desc="predict", total=len(source), unit="image", disable=hidden, file=sys.stderr)
    with bar, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")  # each image is either right or refused with an error
        try:
            for prediction, files in predictor.run(source, sinks, on_error, lambda done, total: bar.update()):
                records.append(record(prediction, files, predictor.size))
                if not args.json:
                    write_line(table(records[-1]), sys.stdout)
        except (BackendError, EngineError, SinkError) as error:
            end = error
            errors.append(str(error))
    if args.json:
        name, weights = predictor.model.config.name, args.weights
        about = {"model": name, "weights": weights, "random_weights": weights is None}
        document = {**about, "size": args.size, "images": records, "errors": errors, "skipped": skipped}
        print(json.dumps(document, indent=2))
    if errors or skipped:
        _warn(summary(total, len(records), len(errors), len(skipped)))
    if end is not None:
        raise UserError(str(end))
    return 1 if errors else 3 if skipped else 0


def _warn(*messages: str) -> None:
    for message in messages:
        write_line(f"hyperseg predict: {printable(message)}", sys.stderr)
