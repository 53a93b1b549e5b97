"""The options that choose a data set, and opening it: which form was found is printed on stderr."""

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from hyperseg._files import printable
from hyperseg._text import counted
from hyperseg.cli import _common
from hyperseg.cli._common import UsageError, UserError
from hyperseg.cli._output import write_line

if TYPE_CHECKING:
    from hyperseg.data.dataset import Dataset


# Not taken from the registry, which would import NumPy for every help text.
_NAMES = "cityscapes, camvid, camvid-kaggle, camvid-32, voc, folder (files of your own) or synthetic"
_OPTIONS = (
    "labels=coarse (cityscapes), void=ignore (camvid-kaggle, camvid-32), unknown=ignore (camvid-32), unmatched=skip or "
    "unmatched=keep (folder), images=500, size=512x1024, seed=1 (synthetic)"
)


def add_dataset_arguments(parser: argparse.ArgumentParser, split: bool = True) -> None:
    """Add `--data`, `--root`, `--option` and, unless `split` is false, `--split`."""
    group, text = parser.add_argument_group("data set"), _common.text
    group.add_argument("--data", metavar="NAME", type=text, required=True, help=_NAMES)
    group.add_argument("--root", metavar="DIR", type=text, help="the folder of the data set (synthetic needs none)")
    if split:
        split_help = "such as train, val or test (default: %(default)s)"
        group.add_argument("--split", type=text, default="val", help=split_help)
    group.add_argument(
        "--option",
        metavar="KEY=VALUE",
        type=_option,
        action="append",
        default=[],
        help=f"an option of the data set; may be repeated: {_OPTIONS}",
    )


def open_dataset(args: argparse.Namespace, split: str | None = None) -> "Dataset":
    """Open the data set of the command line and print its form on stderr.

    Args:
        args: parsed with the arguments of :func:`add_dataset_arguments`.
        split: instead of that in `args`.

    Raises:
        UsageError: there is no data set of this name, or it has no such option.
        UserError: its files are not there, or not as published.
    """
    from hyperseg.data.errors import DataError
    from hyperseg.data.registry import open_dataset

    try:
        dataset = open_dataset(args.data, root_of(args), split or args.split, **options_of(args))
    except DataError as error:
        raise UserError(str(error)) from None
    except ValueError as error:
        raise UsageError(str(error)) from None
    announce(args, dataset)
    return dataset


def announce(args: argparse.Namespace, dataset: "Dataset") -> None:
    """Print on stderr what was opened, in one line."""
    counts = f"{counted(len(dataset), 'image')}, {counted(len(dataset.label_set), 'class')}"
    line = f"hyperseg {args.verb}: {dataset.name} {dataset.split}: {counts}; {dataset.form}"
    write_line(printable(line), sys.stderr)


def root_of(args: argparse.Namespace) -> str:
    """Return `--root`; only data sets without files may do without. Raises UsageError."""
    from hyperseg.data.registry import WITHOUT_FILES

    if args.root is None and args.data not in WITHOUT_FILES:
        raise UsageError(f"the data set {args.data} has files; give their folder with --root DIR")
    return args.root or "-"


def options_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return the values of `--option` by key. Raises UsageError for a key that was given twice."""
    options: dict[str, Any] = {}
    for key, value in args.option:
        if key in options:
            raise UsageError(f"--option {key} was given twice; leave one out")
        options[key] = value
    return options


def _option(text: str) -> tuple[str, Any]:
    """Parse KEY=VALUE. A value in JSON's notation (16, 0.5, true, [1, 2]) is that value, any other a text."""
    key, equals, value = text.partition("=")
    key = key.strip().replace("-", "_")
    if not equals or not key.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE; give for example images=500")
    try:
        return key, json.loads(value, parse_constant=str)
    except ValueError:
        return key, value
