"""Look at, check and prepare data sets.

`hyperseg data ACTION --help` has the options of an action.
"""

# One file of this folder per action, with the same two functions as that of a verb: `add_arguments` and `run`.

import argparse
from importlib import import_module

from hyperseg.cli._common import HelpFormatter

ACTIONS: tuple[str, ...] = ("check", "show", "cache", "export", "download")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the actions of the verb."""
    text = "what to do; each has a --help"
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, help=text)
    for name in ACTIONS:
        module = import_module(f"hyperseg.cli.data.{name}")
        text = (module.__doc__ or "").strip()
        action = actions.add_parser(name, help=text.partition("\n")[0], description=text, formatter_class=HelpFormatter)
        module.add_arguments(action)
        action.set_defaults(run_action=module.run)


def run(args: argparse.Namespace) -> int:
    """Run the action; return the exit code."""
    return args.run_action(args)
