"""Write any data set as folders of images and masks with a classes.yaml, which `--data folder` reads.

So computed scenes become files to try things with, and published data sets become one you can edit. The files are
OUTPUT/images/SPLIT/NAME.png, OUTPUT/masks/SPLIT/NAME.png (palette images of class indices) and OUTPUT/classes.yaml.

Exit codes: 0: all images are written. 1: an image or its labels could not be read and was left out, or nothing could be
written. 2: the command line is not valid. 130: interrupted.
"""

import argparse
import sys
import warnings

from hyperseg._files import printable
from hyperseg._text import counted
from hyperseg.cli import _common
from hyperseg.cli._common import UserError
from hyperseg.cli._datasets import add_dataset_arguments, open_dataset
from hyperseg.cli._output import write_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the action."""
    add_dataset_arguments(parser, split=False)
    split = "a split to write; may be repeated (default: val)"
    parser.add_argument("--split", action="append", type=_common.text, help=split)
    output = "a new folder, or one without these splits"
    parser.add_argument("--output", metavar="FOLDER", type=_common.text, required=True, help=output)


def run(args: argparse.Namespace) -> int:
    """Run the action; return the exit code."""
    from tqdm import tqdm

    from hyperseg.data.errors import DataError
    from hyperseg.data.writing import write_folder

    _common.check_outputs(args.output, [], [])
    datasets = [open_dataset(args, split) for split in dict.fromkeys(args.split or ["val"])]
    errors: list[str] = []
    total = sum(map(len, datasets))
    bar = tqdm(desc="export", total=total, unit="image", disable=not sys.stderr.isatty(), file=sys.stderr)

    def on_error(message: str) -> None:
        errors.append(message)
        write_line(printable(f"hyperseg data: {message}"), sys.stderr)

    with bar, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        try:
            written = write_folder(datasets, args.output, on_error, bar.update)
        except DataError as error:
            raise UserError(f"--output: {error}") from None
        except OSError as error:
            raise UserError(f"--output {args.output}: {_common.reason(error)}") from None
    write_line(printable(f"{counted(written, 'image')} -> {args.output}"), sys.stdout)
    return 1 if errors else 0
