"""Segment images, folders, videos, cameras and streams: label PNGs, overlays, H.264 videos, JSON; prints class shares.

A source is an image or a video file, a folder (without the folders in it), a pattern such as 'photos/**/*.jpg', an
address (http, https, rtsp), the number of a camera, or - for raw frames, bytes without a container, on standard input.
Of an image, a palette PNG of labels and an overlay are written; of a video, a camera or a stream, an overlay in H.264
with every frame at its time, and with the sound of a video.

One source or frame that cannot be done does not end the run. Exit codes: 0: everything is done. 1: a source or a frame
failed, the messages say which and why. 2: the command line is not valid. 3: all sources are done, but files were
skipped. 130: interrupted; what was done is kept.
"""

import argparse
import json
import tempfile
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from hyperseg._text import counted
from hyperseg.cli import _common
from hyperseg.cli._common import UsageError, UserError, user_errors
from hyperseg.cli._predict_jobs import (
    KINDS,
    Outputs,
    all_outputs,
    digest,
    make_jobs,
    parse_kinds,
    place_in_group,
    share_of,
)
from hyperseg.cli._predict_run import Run, interrupted_by_sigterm, warn

if TYPE_CHECKING:
    import torch

    from hyperseg.data.labels import Color
    from hyperseg.predict import Predictor
    from hyperseg.predict.inputs import Inputs
    from hyperseg.predict.window import Window


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    add, default, text = parser.add_argument, "(default: %(default)s)", _common.text
    sources = "images, videos, folders, patterns such as 'images/*.jpg', addresses, a camera's number, or -"
    add("images", nargs="+", metavar="SOURCE", type=text, help=sources)
    add("--weights", metavar="FILE", type=text, help=f"trained weights: {_common.WEIGHTS}")
    add("--model", metavar="NAME", type=text, help=_common.MODEL)
    add("--offline", action="store_true", help=_common.OFFLINE)
    add("--size", type=text, default="native", help=f"{_SIZE} {default}")
    add("--device", type=text, default="auto", help=f"{_common.DEVICE} {default}")
    dtypes = ("float32", "float16", "bfloat16")
    add("--dtype", choices=dtypes, default="float32", help=f"the precision that the network runs in {default}")

    add = parser.add_argument_group("outputs").add_argument
    add(
        "--output",
        metavar="FOLDER",
        type=text,
        default="predictions",
        help=f"the folder to write to {default}; {_PIPE}",
    )
    add("--write", metavar="KINDS", type=text, help=_WRITE)
    alpha = f"opacity of the colours in overlays, from 0 to 1 {default}"
    add("--alpha", type=_common.opacity, default=0.6, help=alpha)
    add("--colors", metavar="FILE", type=text, help=_COLORS)
    add("--no-overlay", dest="overlay", action="store_false", help="write label PNGs only")
    add("--overlay-format", choices=("png", "jpg"), default="png", help=f"file format of overlays of images {default}")
    add("--legend", action="store_true", help="add a strip to overlays that names the classes")
    add("--quality", type=_quality, default=20, help=f"of videos: 0 (lossless) to 51 (smallest) {default}")
    add("--no-sound", dest="sound", action="store_false", help="leave the sound of videos out")
    add("--json", action="store_true", help="print one JSON document instead of tables")

    add = parser.add_argument_group("runs").add_argument
    add("--resume", action="store_true", help="leave out what an earlier run with the same settings wrote")
    add("--frames", metavar="N", type=_common.count, help="end each video, camera or stream after N frames")
    add("--show", action="store_true", help="show overlays in a window; q or Escape ends the run")
    add("--explain", action="store_true", help="print where the time of a frame went")

    add = parser.add_argument_group("raw frames on standard input (-)").add_argument
    add("--raw-size", metavar="HxW", type=_sides, help="height and width of the frames")
    formats = ("rgb24", "bgr24", "gray")
    add("--raw-format", choices=formats, default="rgb24", help=f"the pixels, as FFmpeg calls them {default}")
    add("--rate", type=_rate, default="30", help=f"frames per second, a number or fraction {default}")


_SIZE = (
    "the size that the network runs at: native (each image's own), model (the size at which the published network was "
    "tested) or HEIGHTxWIDTH; images are resized to it, and the scores resized back before labels are chosen"
)
_PIPE = "- writes the labels to standard output, a byte per pixel"
_WRITE = (
    f"what to write, with commas: {', '.join(KINDS)} (palette PNGs of labels, grey PNGs of indices, colours, overlays, "
    "image and overlay in one picture, JSON); of a video, labels and index are folders of PNGs, json a line per frame "
    "(default: labels,overlay for images, overlay for videos)"
)


_COLORS = (
    "a classes.yaml whose colors are used, by the names of the classes, instead of those of the network's data set"
)


def run(args: argparse.Namespace) -> int:
    """Run the verb; return the exit code."""
    rank, world = place_in_group()
    if args.json and world > 1:
        raise UsageError("--json of several processes would be mixed up; use --write json, which writes files")
    if args.json and args.output == "-":
        raise UsageError("--json and --output - both write to standard output; give one of them")
    if "-" in args.images and args.raw_size is None:
        raise UsageError("raw frames (-) have no size of their own; give --raw-size HEIGHTxWIDTH")
    kinds = parse_kinds(args.write, args.overlay)
    name = _common.check_network(args.weights, args.model)

    from hyperseg.predict import parse_size
    from hyperseg.predict.addresses import is_address

    # All that needs no PyTorch is checked before it is imported, which takes seconds.
    with user_errors(ValueError, prefix="--size: ", to=UsageError):
        parse_size(args.size, resolution=(1, 1))
    colors = {} if args.colors is None else _colors(args.colors)
    device = _device(args) if any(map(is_address, args.images)) else None  # before anything is downloaded
    outputs = Outputs(
        Path(args.output),
        kinds,
        args.alpha,
        args.legend,
        args.overlay_format,
        args.sound,
        args.quality,
        digest(args, args.weights, colors),
        raw=args.output == "-",
    )
    window = _open_window() if args.show else None
    errors: list[str] = []
    skipped: list[str] = []
    with tempfile.TemporaryDirectory(prefix="hyperseg-") as downloads, interrupted_by_sigterm():
        inputs = _sorted(args, Path(downloads), errors, skipped)
        names = _named(inputs, outputs)
        warn(*skipped)
        if not len(inputs):
            raise UserError("; ".join(errors) or "only outputs of an earlier run were found; give images")
        warn(*errors)
        share_of(rank, world, inputs)

        device = device or _device(args)
        network = _common.load_network(args.weights, name)
        if args.weights is None:
            meaning = "so its labels mean nothing; this only tries the pipeline"
            warn(f"no --weights: {name} runs with random weights, {meaning}")
        from hyperseg.predict import Predictor

        with user_errors(ValueError):
            predictor = Predictor(network, parse_size(args.size, network.config.resolution), device, args.dtype)
        if unknown := [name for name in colors if name not in predictor.label_set.classes]:
            known = ", ".join(predictor.label_set.classes)
            raise UserError(f"--colors: {unknown[0]} in {args.colors} is no class of the network; it has {known}")
        predictor.label_set = predictor.label_set.with_colors(colors)
        return _segment(args, predictor, inputs, outputs, names, window, errors, skipped)


def _colors(file: str) -> "dict[str, Color]":
    from hyperseg.data.classes_file import read_classes
    from hyperseg.data.errors import DataError

    with user_errors(DataError, prefix="--colors: "):
        table = read_classes(Path(file)).label_set
    return dict(zip(table.classes, table.colors, strict=True))


class _Interrupted(UserError):
    code = 130


def _device(args: argparse.Namespace) -> "torch.device":
    """Return the device to run on, once the settings of the machine are checked too."""
    from hyperseg.ops import BackendError, named_backend

    with user_errors(BackendError, prefix="HYPERSEG_BACKEND: "):
        named_backend()
    return _common.pick_device(_common.device_of_rank(args.device))


def _sorted(args: argparse.Namespace, downloads: Path, errors: list[str], skipped: list[str]) -> "Inputs":
    from hyperseg._progress import ProgressBars
    from hyperseg.predict.inputs import sort_inputs

    with ProgressBars() as bars:
        return sort_inputs(
            args.images, downloads, lambda error: errors.append(str(error)), skipped.append, bars.show, warn
        )


def _named(inputs: "Inputs", outputs: Outputs) -> dict[Path, str]:
    """Return the names of the outputs of files. Check that they can be written; say which differ from the file's."""
    from hyperseg.predict import unique_names
    from hyperseg.predict.names import fits

    files = [*inputs.images, *inputs.videos]
    names = dict(zip(files, unique_names(files), strict=True))
    if not outputs.raw:
        _common.check_outputs(str(outputs.folder), files, all_outputs(inputs, outputs, names))
    for path, output in names.items():
        if output != path.stem:
            reason = f"several files are called {path.stem}" if fits(path.stem) else "the name is too long"
            warn(f"{reason}; the outputs of {path} are called {output}")
    return names


def _segment(
    args: argparse.Namespace,
    predictor: "Predictor",
    inputs: "Inputs",
    outputs: Outputs,
    names: Mapping[Path, str],
    window: "Window | None",
    errors: list[str],
    skipped: list[str],
) -> int:
    """Segment and report the inputs. `errors` and `skipped` are messages about files that are not in `inputs`."""
    from hyperseg.ops import BackendError
    from hyperseg.predict import SinkError
    from hyperseg.runtime import EngineError

    run = Run(
        predictor,
        lines=not args.json and not outputs.raw,
        keep=args.json,
        frames=args.frames,
        window=window,
        alpha=args.alpha,
        resume=args.resume,
        explain=args.explain,
    )
    run.errors, run.skipped, run.failed = errors, skipped, len(errors)
    total = len(inputs) + len(errors)
    noun = "image" if len(inputs.images) == len(inputs) else "input"
    end: Exception | None = None
    try:
        for job in make_jobs(args, inputs, outputs, names):
            if not run.job(job):
                break
    except KeyboardInterrupt:
        again = "; --resume leaves out what is done" if not outputs.raw and (inputs.images or inputs.videos) else ""
        raise _Interrupted(f"interrupted ({run.account(total, noun, 'not finished')}){again}") from None
    except (BackendError, EngineError, SinkError) as error:
        end = error
        errors.append(str(error))
        run.failed += 1
    if args.json:
        name, weights = predictor.model.config.name, args.weights
        about = {"model": name, "weights": weights, "random_weights": weights is None, "size": args.size}
        document = {**about, "images": run.images, "videos": run.videos, "errors": errors, "skipped": skipped}
        print(json.dumps(document, indent=2))
    if run.earlier:
        warn(f"{counted(run.earlier, noun)} had been done before")
    if end is not None:
        raise UserError(f"{str(end).rstrip('.')} ({run.account(total, noun)})" if total > 1 else str(end))
    if errors or skipped:
        warn(run.account(total, noun))
    return 1 if errors else 3 if skipped else 0


def _open_window() -> "Window":
    from hyperseg.predict.window import Window, WindowError

    with user_errors(WindowError, prefix="--show: "):
        return Window("hyperseg predict")


def _sides(text: str) -> tuple[int, int]:
    from hyperseg._text import parse_sides

    sides = parse_sides(text)
    if sides is None or max(sides) > 16384:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; give HEIGHTxWIDTH such as 720x1280")
    return sides


def _rate(text: str) -> Fraction:
    try:
        rate = Fraction(text)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if not 0 < rate <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is no rate; give frames per second, such as 30 or 30000/1001")
    return rate


def _quality(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 51:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no quality; give a whole number from 0 (lossless) to 51 (smallest)"
        )
    return int(text)
