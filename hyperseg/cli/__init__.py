"""The `hyperseg` command: one file per verb; files with an underscore are shared by verbs.

The file of a verb has `add_arguments(parser)` and `run(args)`, which returns the exit code and raises UserError for
errors that the user can fix, UsageError for a command line that is valid nowhere. Its docstring is the help text, the
first line the summary. Verbs import PyTorch and the rest of the library inside `run`, so that the help is quick.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from hyperseg._files import printable
from hyperseg.cli._common import HelpFormatter, UsageError, UserError
from hyperseg.cli._output import encodable

__all__ = ["VERBS", "UserError", "build_parser", "main"]

VERBS = ("predict", "info")


class _Parser(argparse.ArgumentParser):
    """Raises errors instead of printing the usage and exiting."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command. `verb` and `run` of its result name the verb and its function."""
    parser = _Parser("hyperseg", description="Real-time semantic segmentation with patch-wise generated weights.")
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
    parser = build_parser()
    if not arguments:
        parser.print_help(sys.stderr)
        return 2
    prefix = f"hyperseg {arguments[0]}" if arguments[0] in VERBS else "hyperseg"
    try:
        args = parser.parse_args(arguments)
        code = args.run(args)
        sys.stdout.flush()
        return code
    except UsageError as error:
        return _fail(prefix, f"{error} (see {prefix} --help)", error.code)
    except UserError as error:
        return _fail(prefix, str(error), error.code)
    except BrokenPipeError:  # the reader of a pipe has closed it, as `head` does
        _discard_output()
        return 1
    except OSError as error:  # the output cannot be written, for example to a full disk
        _discard_output()
        return _fail(prefix, str(error), code=1)
    except KeyboardInterrupt:
        return _fail(prefix, "interrupted", code=130)


def _fail(prefix: str, message: str, code: int) -> int:
    line = printable(" ".join(message.split()))
    print(encodable(f"{prefix}: error: {line}", sys.stderr), file=sys.stderr)
    return code


def _discard_output() -> None:
    """Have the flush at exit not fail again."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
