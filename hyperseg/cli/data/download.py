"""Download a data set that may be fetched freely: voc, which is PASCAL VOC 2012 with the labels of train_aug.

An interrupted download is continued when the command is called again; what is there already is left alone. The archives
are checked, unpacked and then removed.

Exit codes: 0: the data set is there. 1: the network, the server or the disk failed. 2: the command line is not valid.
130: interrupted.
"""

import argparse
import sys

from hyperseg._files import printable
from hyperseg._progress import ProgressBars
from hyperseg.cli import _common
from hyperseg.cli._common import UsageError, user_errors
from hyperseg.cli._output import write_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the action."""
    add, text = parser.add_argument, _common.text
    add("data", metavar="NAME", type=text, help="voc; of others the message says where they can be had")
    add("--root", metavar="DIR", type=text, required=True, help="the folder to put it in; it is created")
    add("--no-augmented", dest="augmented", action="store_false", help="without the labels and lists of train_aug")
    add("--keep-archives", action="store_true", help="do not remove the archives")
    url = "another address of an archive, such as of a mirror; may be repeated"
    add("--url", metavar="ARCHIVE=URL", action="append", default=[], type=_address, help=url)


def run(args: argparse.Namespace) -> int:
    """Run the action; return the exit code."""
    from hyperseg.data.download import download_voc, needs_login
    from hyperseg.data.errors import DataError
    from hyperseg.data.registry import WITHOUT_FILES, dataset_names

    if args.data not in dataset_names():
        raise UsageError(f"there is no data set {args.data!r}; voc can be downloaded")
    if args.data in WITHOUT_FILES:
        raise UsageError(f"the data set {args.data} has no files: it is computed")
    with user_errors(DataError):
        if args.data != "voc":
            raise needs_login(args.data, args.root)
        with ProgressBars() as bars:
            folder = download_voc(args.root, bars.show, dict(args.url), args.augmented, args.keep_archives)
    write_line(printable(folder), sys.stdout)
    return 0


def _address(value: str) -> tuple[str, str]:
    name, equals, url = value.partition("=")
    if not equals or "://" not in url:
        raise argparse.ArgumentTypeError(f"{value!r} is not ARCHIVE=URL")
    return name, url
