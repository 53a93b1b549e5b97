"""Decode a split once, into a folder that is read without decoding: training gets its images many times as fast.

The folder holds the images and labels as raw pixels, 4 bytes per pixel: 25 GB for the train split of Cityscapes. An
interrupted run goes on where it ended if the command is repeated. A cache whose original files, classes or label map
have changed since is refused when it is opened; --overwrite writes it again.

Exit codes: 0: the cache is complete. 1: an image or its labels could not be read, or the cache could not be written;
what is complete is kept for the next run. 2: the command line is not valid. 130: interrupted.
"""

import argparse
import sys
import warnings

from hyperseg._files import printable
from hyperseg._text import counted
from hyperseg.cli import _common
from hyperseg.cli._common import user_errors
from hyperseg.cli._datasets import add_dataset_arguments, open_dataset
from hyperseg.cli._output import write_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the action."""
    add_dataset_arguments(parser)
    output = "the folder that becomes the cache"
    parser.add_argument("--output", metavar="FOLDER", type=_common.text, required=True, help=output)
    workers = "threads that decode images (default: one per CPU)"
    parser.add_argument("--workers", metavar="N", type=_common.count, help=workers)
    parser.add_argument("--overwrite", action="store_true", help="replace a cache that is out of date")


def run(args: argparse.Namespace) -> int:
    """Run the action; return the exit code."""
    from tqdm import tqdm

    from hyperseg.data.errors import DataError
    from hyperseg.data.pipeline.cache_writing import write_cache

    dataset = open_dataset(args)
    bar = tqdm(desc="cache", total=len(dataset), unit="image", disable=not sys.stderr.isatty(), file=sys.stderr)

    def progress(done: int, total: int) -> None:
        bar.update(done - bar.n)

    with bar, warnings.catch_warnings(), user_errors(DataError):
        warnings.filterwarnings("ignore", module=r"PIL\.")
        report = write_cache(dataset, args.output, args.workers, args.overwrite, progress)
    kept = f" ({report.kept} of them by earlier runs)" if report.kept else ""
    size = f"{report.bytes / 1e6:,.1f} MB"
    write_line(printable(f"{counted(report.images, 'image')}{kept}, {size} -> {args.output}"), sys.stdout)
    return 0
