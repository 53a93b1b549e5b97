"""Write a network as one file for another runtime: ONNX, a program of torch.export, or compiled for C++.

FORMAT is onnx (ONNX Runtime, OpenVINO, TensorRT: standard operators only), pt2 (PyTorch with hyperseg installed: its
operators inside) or aoti (C++ without Python: compiled by AOTInductor, for csrc/runtime). The program takes uint8 RGB
frames [N, H, W, 3] of one size, pads and normalises them, and returns labels, uint8 [N, H, W], or logits.

Before it is written it is run, where its runtime is installed, and compared with the network in float32: the share of
equal labels and the error of the logits are printed. A program that does not match is not written. FILE.json describes
it: classes, palette, size, normalisation, precision, versions, checksums, and these results.

Exit codes: 0: written. 1: nothing was written, the message says why. 2: the command line is not valid. 130:
interrupted, nothing was written.
"""

import argparse
import sys
from typing import TYPE_CHECKING, Any

from hyperseg._files import printable
from hyperseg.cli import _common
from hyperseg.cli._common import UsageError, UserError, user_errors
from hyperseg.cli._output import write_line
from hyperseg.export.formats import FORMATS

if TYPE_CHECKING:
    from torch import Tensor

_CALIBRATION_IMAGES = 64
# Options that only some formats have, by the names of their arguments.
_OF_FORMATS = {"lowering": "--lowering", "calibration": "--calibrate"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    add, default, text = parser.add_argument, "(default: %(default)s)", _common.text
    *names, last = FORMATS
    add("format", metavar="FORMAT", choices=tuple(FORMATS), help=f"{', '.join(names)} or {last}")
    add("--weights", metavar="FILE", type=text, help=f"trained weights: {_common.WEIGHTS}")
    add("--model", metavar="NAME", type=text, help=_common.MODEL)
    add("--offline", action="store_true", help=_common.OFFLINE)
    add("--output", metavar="FILE", type=text, required=True, help="the file to write; FILE.json is written too")
    add("--overwrite", action="store_true", help="replace both if they exist")
    size = "height and width of the frames, HEIGHTxWIDTH, or model: those that the published network was tested at"
    add("--size", type=text, default="model", help=f"{size} {default}")
    add("--batch", type=_batch, default=None, metavar="N", help="frames per call (default: any number; aoti: 1)")
    add("--returns", choices=("labels", "logits"), default="labels", help=f"what the program returns {default}")
    precisions = ("float32", "float16", "bfloat16", "int8")
    add("--precision", choices=precisions, default="float32", help=f"of weights and maps {default}")
    add("--device", type=text, default="cpu", help=f"that a program of PyTorch is made for: cpu or cuda {default}")
    add("--no-check", dest="check", action="store_false", help="do not run the program before it is written")

    add = parser.add_argument_group("ONNX").add_argument
    lowering = (
        "the depthwise step with generated weights: conv (one grouped convolution with computed weights; needs --batch "
        "N) or multiply (nine products, which every runtime takes) (default: conv with --batch 1, else multiply)"
    )
    add("--lowering", choices=("conv", "multiply"), help=lowering)
    calibrate = "with --precision int8: a folder of images like those that the program will get, to find ranges"
    add("--calibrate", dest="calibration", metavar="FOLDER", type=text, help=calibrate)


def run(args: argparse.Namespace) -> int:
    """Run the verb; return the exit code."""
    name = _common.check_network(args.weights, args.model)

    from hyperseg._extras import MissingPackageError
    from hyperseg.export import ExportError
    from hyperseg.export.common import check_target
    from hyperseg.predict import parse_size

    format = FORMATS[args.format]
    _check_options(args)
    with user_errors(ExportError, prefix="--output: "):
        check_target(args.output, args.overwrite)
    with user_errors(ValueError, prefix="--size: ", to=UsageError):
        parse_size(args.size, resolution=(1, 1), native=False)  # before the network is loaded, which takes a while
    network = _common.load_network(args.weights, name)
    if args.weights is None:
        write_line(
            f"hyperseg export: no --weights: {printable(str(name))} has random weights, so its labels mean nothing",
            sys.stderr,
        )
    size = parse_size(args.size, network.config.resolution) or network.config.resolution
    extra: dict[str, Any] = {option: getattr(args, option) for option in format.options if getattr(args, option)}
    if format.devices:
        extra["device"] = args.device
    if args.calibration is not None:
        extra["calibration"] = _calibration(args.calibration, size)
    try:
        exported = format.function()(
            network,
            args.output,
            size=size,
            batch=args.batch,
            returns=args.returns,
            precision=args.precision,
            check=args.check,
            overwrite=args.overwrite,
            source=args.weights,
            **extra,
        )
    except ValueError as error:
        raise UsageError(str(error)) from None
    except (ExportError, MissingPackageError, TypeError) as error:
        raise UserError(str(error)) from None
    about = exported.about
    height, width = about["size"]
    batch = "any batch" if about["batch"] == "dynamic" else f"batch {about['batch']}"
    summary = (
        f"{about['network']['name']} at {height}x{width}, {batch}, {about['precision']}, {about['bytes'] / 1e6:.1f} MB"
    )
    write_line(f"{printable(args.output)} ({summary})", sys.stdout)
    for line in (*exported.checks, *exported.notes):
        write_line(f"  {line}", sys.stdout)
    return 0


def _calibration(folder: str, size: tuple[int, int]) -> list["Tensor"]:
    """Return images of a folder, evenly spread, at the program's size. Raises UserError."""
    import numpy as np
    import torch
    from PIL import Image

    from hyperseg.images import SourceError, read_image
    from hyperseg.predict import find_images

    with user_errors(SourceError, OSError, prefix="--calibrate: "):
        paths = list(find_images([folder]))
        step = max(1, len(paths) // _CALIBRATION_IMAGES)
        frames = []
        for path in paths[::step][:_CALIBRATION_IMAGES]:
            image = Image.fromarray(read_image(path)).resize(size[::-1], Image.Resampling.BILINEAR)
            frames.append(torch.from_numpy(np.array(image)))
    return frames


def _check_options(args: argparse.Namespace) -> None:
    """Check what goes together. Raises UsageError."""
    format = FORMATS[args.format]
    for name, option in _OF_FORMATS.items():
        if getattr(args, name) is not None and name not in format.options:
            having = " and ".join(each.name for each in FORMATS.values() if name in each.options)
            raise UsageError(f"{option} is an option of {having}, not of {args.format}; leave it out")
    if args.device != "cpu" and not format.devices:
        raise UsageError(f"--device: a program of {args.format} is made for no device; leave it out")
    if args.precision not in format.precisions:
        raise UsageError(f"--precision {args.precision} is not for {args.format}; give {', '.join(format.precisions)}")
    if (args.precision == "int8") != (args.calibration is not None):
        raise UsageError("--precision int8 and --calibrate FOLDER go together; give both or neither")
    if args.size.strip().lower() == "native":
        raise UsageError("--size native: a program has one size; give HEIGHTxWIDTH or model")


def _batch(value: str) -> int | None:
    return None if value == "any" else _common.count(value)
