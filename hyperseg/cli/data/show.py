"""Draw a contact sheet: images, and beside each the same with its labels, with names, shares and a legend.

Ignored pixels are striped. Look at your data before you train on it. The images are spread evenly over the split,
unless --images or --random says otherwise.

Exit codes: 0: done. 1: an image or its labels cannot be used, which the sheet then shows, or nothing was written. 2:
the command line is not valid. 130: interrupted.
"""

import argparse
import random
import sys
import warnings

from hyperseg._files import printable
from hyperseg.cli import _common
from hyperseg.cli._common import UsageError, UserError, user_errors
from hyperseg.cli._datasets import add_dataset_arguments, open_dataset
from hyperseg.cli._output import write_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the action."""
    add_dataset_arguments(parser)
    add, text, default = parser.add_argument, _common.text, "(default: %(default)s)"
    add("--output", metavar="FILE", type=text, default="sheet.png", help=f"a .png or .jpg {default}")
    add("--count", metavar="N", type=_common.count, default=12, help=f"number of images {default}")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--images", metavar="NAME", nargs="+", type=text, help="these images, by name")
    seed = "random images; another number gives others"
    choice.add_argument("--random", metavar="SEED", type=int, help=seed)
    add(
        "--columns",
        metavar="N",
        type=_common.count,
        help="pairs of pictures per row (default: by their number)",
    )
    add("--width", metavar="PIXELS", type=_common.count, default=480, help=f"of each picture, at least 64 {default}")
    alpha = f"opacity of the labels' colours, from 0 to 1 {default}"
    add("--alpha", type=_common.opacity, default=0.6, help=alpha)


def run(args: argparse.Namespace) -> int:
    """Run the action; return the exit code."""
    from tqdm import tqdm

    from hyperseg.data.errors import DataError
    from hyperseg.data.show import by_names, contact_sheet, evenly
    from hyperseg.images.writing import save_image

    if not args.output.lower().endswith((".png", ".jpg", ".jpeg")):
        raise UsageError(f"--output {args.output} does not end in .png or .jpg")
    if args.width < 64:
        raise UsageError(f"--width {args.width} is too narrow; give at least 64")
    _common.check_output_file("--output", args.output)
    dataset = open_dataset(args)
    with user_errors(DataError, prefix="--images: "):
        if args.images is not None:
            indices = by_names(dataset, args.images)
        elif args.random is not None:
            count = min(args.count, len(dataset))
            indices = sorted(random.Random(args.random).sample(range(len(dataset)), count))
        else:
            indices = evenly(args.count, len(dataset))
    errors: list[str] = []
    bar = tqdm(desc="show", total=len(indices), unit="image", disable=not sys.stderr.isatty(), file=sys.stderr)
    with bar, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        sheet = contact_sheet(dataset, indices, args.columns, args.width, args.alpha, errors.append, bar.update)
    for error in errors:
        write_line(printable(f"hyperseg data: {error}"), sys.stderr)
    try:
        save_image(sheet, args.output)
    except (OSError, ValueError) as error:
        raise UserError(f"--output {args.output}: {_common.reason(error)}") from None
    write_line(printable(args.output), sys.stdout)
    return 1 if errors else 0
