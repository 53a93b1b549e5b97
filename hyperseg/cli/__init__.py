"""The `hyperseg` command: one module a verb, whose function of the same name is the verb.

Importing this package is quick: a verb imports what it needs when it runs. The function's signature gives the options
and its docstring their help texts (see `signature.add_signature`); it returns the exit code, and raises UserError for
what the user can put right.
"""

import os
import sys
from collections.abc import Sequence
from importlib import import_module

VERBS = ("predict", "info")


class UserError(Exception):
    """Something the user can put right: printed as one line, without a traceback."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb. Returns 0: done, 1: something went wrong, 2: command line not understood, 130: interrupted."""
    from jsonargparse import ArgumentError, ArgumentParser

    from hyperseg.cli.signature import HelpFormatter, add_signature, one_line, summary

    description = "Real-time semantic segmentation with patch-wise generated weights."
    parser = ArgumentParser("hyperseg", description=description, formatter_class=HelpFormatter, exit_on_error=False)
    subcommands = parser.add_subcommands(dest="verb", metavar="VERB")
    verbs = {}
    for name in VERBS:
        verb = verbs[name] = getattr(import_module(f"hyperseg.cli.{name}"), name)
        subparser = ArgumentParser(exit_on_error=False)
        add_signature(subparser, verb)
        subcommands.add_subcommand(name, subparser, help=summary(verb))
        subparser.prog = f"hyperseg {name}"

    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments:
        parser.print_help(sys.stderr)
        return 2
    prefix = f"hyperseg {arguments[0]}" if arguments[0] in VERBS else "hyperseg"
    try:
        args = parser.parse_args(arguments)
        prefix = f"hyperseg {args.verb}"
        return verbs[args.verb](**vars(args[args.verb]))
    except ArgumentError as error:
        # jsonargparse calls the verb's own "photos" "predict.photos".
        message = one_line(error).replace(f"{prefix.rpartition(' ')[2]}.", "")
        return _complain(prefix, f"{message} (see {prefix} --help)", code=2)
    except UserError as error:
        return _complain(prefix, one_line(error), code=1)
    except BrokenPipeError:  # `hyperseg ... | head`: nobody reads on, and the flush at exit must not complain again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return _complain(prefix, "interrupted", code=130)


def _complain(prefix: str, message: str, code: int) -> int:
    print(f"{prefix}: error: {message}", file=sys.stderr)
    return code
