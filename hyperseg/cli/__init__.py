"""The `hyperseg` command: one file per verb; files with an underscore are shared by verbs.

The file of a verb has `add_arguments(parser)` and `run(args)`, which returns the exit code and raises UserError for
errors that the user can fix, UsageError for a command line that is valid nowhere. Its docstring is the help text, the
first line the summary. Verbs import PyTorch and the rest of the library inside `run`, so that the help is quick.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from hyperseg import __version__
from hyperseg._files import printable
from hyperseg.cli._common import HelpFormatter, UsageError, UserError, without_downloads
from hyperseg.cli._output import encodable

__all__ = ["VERBS", "UserError", "build_parser", "main"]

VERBS = ("predict", "serve", "train", "eval", "data", "export", "push", "info")


class _Parser(argparse.ArgumentParser):
    """Raises errors instead of printing the usage and exiting."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command. `verb` and `run` of its result name the verb and its function."""
    parser = _Parser("hyperseg", description="Real-time semantic segmentation with patch-wise generated weights.")
    parser.add_argument("--version", action="version", version=f"hyperseg {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name in VERBS:
        module = import_module(f"hyperseg.cli.{name}")
        text = (module.__doc__ or "").strip()
        verb = verbs.add_parser(
            name,
            help=text.partition("\n")[0],
            description=text,
            formatter_class=HelpFormatter,
        )
        module.add_arguments(verb)
        verb.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb. Return 0: done, 1: failed, 2: the command line is not valid, 130: interrupted, or by its help."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _open_missing_streams()
    parser = build_parser()
    if not arguments:
        parser.print_help(sys.stderr)
        return 2
    prefix = f"hyperseg {arguments[0]}" if arguments[0] in VERBS else "hyperseg"
    try:
        args = parser.parse_args(arguments)
        args.command_line = shlex.join(["hyperseg", *arguments])  # for outputs that say how they were made
        with without_downloads(getattr(args, "offline", False)):
            code = args.run(args)
        sys.stdout.flush()
        return code
    except UsageError as error:
        return _fail(prefix, f"{error} (see {_with_action(prefix, arguments)} --help)", error.code)
    except UserError as error:
        return _fail(prefix, str(error), error.code)
    except BrokenPipeError:  # the reader of a pipe has closed it, as `head` does
        _discard_output()
        return 1
    except OSError as error:  # the output cannot be written, for example to a full disk
        _discard_output()
        text = f"the output cannot be written ({error.strerror})" if error.filename is None else str(error)
        return _fail(prefix, text, code=1)
    except KeyboardInterrupt:
        return _fail(prefix, "interrupted", code=130)


def _with_action(prefix: str, arguments: Sequence[str]) -> str:
    """Return the command whose help lists the options: with the action, such as check, if the verb has actions."""
    from hyperseg.cli.data import ACTIONS

    return (
        f"{prefix} {arguments[1]}" if arguments[0] == "data" and arguments[1:2] and arguments[1] in ACTIONS else prefix
    )


def _fail(prefix: str, message: str, code: int) -> int:
    line = printable(" ".join(message.split()))
    print(encodable(f"{prefix}: error: {line}", sys.stderr), file=sys.stderr)
    return code


def _open_missing_streams() -> None:
    """Have output go nowhere where Python has no stream for it, as after `>&-`."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - until the process ends


def _discard_output() -> None:
    """Have the flush at exit not fail again."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
