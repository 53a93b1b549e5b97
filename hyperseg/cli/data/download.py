"""Download a data set that may be fetched freely: voc, which is PASCAL VOC 2012 with the labels of train_aug.

An interrupted download is continued when the command is called again; what is there already is left alone. The archives
are checked, unpacked and then removed.

Exit codes: 0: the data set is there. 1: the network, the server or the disk failed. 2: the command line is not valid.
130: interrupted.
"""

import argparse
import sys
from typing import TYPE_CHECKING, Any

from hyperseg._files import printable
from hyperseg.cli import _common
from hyperseg.cli._common import UsageError, user_errors
from hyperseg.cli._output import write_line

if TYPE_CHECKING:
    from hyperseg.data.transfer import Progress


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
        with _Bars() as bars:
            folder = download_voc(args.root, bars.show, dict(args.url), args.augmented, args.keep_archives)
    write_line(printable(folder), sys.stdout)
    return 0


class _Bars:
    """A progress bar for each transfer, shown on a terminal."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._of: tuple[str, bool] | None = None

    def __enter__(self) -> "_Bars":
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, progress: "Progress") -> None:
        """Show the state of a transfer, in a new bar if it is another than before."""
        from tqdm import tqdm

        if self._of != (progress.name, progress.unpacking):
            self.__exit__()
            self._of = progress.name, progress.unpacking
            self._bar = tqdm(
                desc=f"{'unpack' if progress.unpacking else 'download'} {printable(progress.name)}",
                total=progress.total,
                unit="B",
                unit_scale=True,
                disable=not sys.stderr.isatty(),
                file=sys.stderr,
            )
        self._bar.update(progress.done - self._bar.n)


def _address(value: str) -> tuple[str, str]:
    name, equals, url = value.partition("=")
    if not equals or "://" not in url:
        raise argparse.ArgumentTypeError(f"{value!r} is not ARCHIVE=URL")
    return name, url
