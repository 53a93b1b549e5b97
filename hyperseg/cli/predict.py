"""Segment images: write a label PNG and an overlay for each, and print the share of each class.

The labels are written to FOLDER/<stem>_labels.png, where the palette index of a pixel is its class, and the overlay to
FOLDER/<stem>_overlay.png. Images are first turned upright by their EXIF orientation.
"""

import argparse
import json
import sys

from hyperseg.cli import _common
from hyperseg.cli._common import UserError, user_errors
from hyperseg.cli._output import record, table, write_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    add, default = parser.add_argument, "(default: %(default)s)"
    add("images", nargs="+", metavar="IMAGE", help="image files, folders of images, or patterns such as 'images/*.jpg'")
    add("--weights", metavar="FILE", help=f"trained weights: {_common.WEIGHTS}")
    add("--model", metavar="NAME", help=_common.MODEL)
    add("--output", metavar="FOLDER", default="predictions", help=f"the folder to write to {default}")
    add("--size", default="native", help=f"{_SIZE} {default}")
    add("--device", default="auto", help=f"{_common.DEVICE} {default}")
    dtypes = ("float32", "float16", "bfloat16")
    add("--dtype", choices=dtypes, default="float32", help=f"the precision that the network runs in {default}")
    add("--alpha", type=float, default=0.6, help=f"opacity of the colours in the overlay, from 0 to 1 {default}")
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
    if not 0 <= args.alpha <= 1:
        raise UserError(f"--alpha is {args.alpha}; give 0 (image only) to 1 (colours only)")
    _common.check_network(args.weights, args.model)

    from tqdm import tqdm

    from hyperseg.ops import BackendError, named_backend
    from hyperseg.predict import ImageSource, LabelSink, OverlaySink, Predictor, SinkError, find_images, parse_size
    from hyperseg.runtime import EngineError

    with user_errors(BackendError, prefix="HYPERSEG_BACKEND: "):
        named_backend()
    with user_errors(ValueError):
        parse_size(args.size, resolution=(1, 1))  # before the network is loaded, which takes a while
        source = ImageSource(find_images(args.images))
    device = _common.pick_device(args.device)
    sinks: dict[str, LabelSink | OverlaySink] = {"labels": LabelSink(args.output)}
    if args.overlay:
        sinks["overlay"] = OverlaySink(args.output, args.alpha, args.legend, args.overlay_format)
    _common.check_outputs(args.output, source.paths, [s.path(name) for s in sinks.values() for name in source.names])
    for path, name in zip(source.paths, source.names, strict=True):
        if name != path.stem:
            _warn(f"several images are called {path.stem}; the outputs of {path} are called {name}")

    network, warning = _common.load_network(args.weights, args.model)
    if warning:
        _warn(warning)
    size = parse_size(args.size, network.config.resolution)
    with user_errors(ValueError):
        predictor = Predictor(network, size, device, args.dtype)

    records, errors = [], []

    def on_error(error: Exception) -> None:
        errors.append(f"{error}; try --size model" if isinstance(error, MemoryError) else str(error))
        _warn(errors[-1])

    hidden = len(source) < 2 or not sys.stderr.isatty()
    with tqdm(desc="predict", total=len(source), unit="image", disable=hidden, file=sys.stderr) as bar:
        results = predictor.run(source, sinks, on_error, lambda done, total: bar.update())
        with user_errors(BackendError, EngineError, SinkError):
            for prediction, files in results:
                records.append(record(prediction, files, size))
                if not args.json:
                    write_line(table(records[-1]), sys.stdout)
    if args.json:
        about = {"model": network.config.name, "weights": args.weights, "random_weights": args.weights is None}
        print(json.dumps({**about, "size": args.size, "images": records, "errors": errors}, indent=2))
    return 1 if errors else 0


def _warn(message: str) -> None:
    write_line(f"hyperseg predict: {message}", sys.stderr)
