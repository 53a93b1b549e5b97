"""Look at, check and prepare data sets: `hyperseg data ACTION`, one file of this folder per action.

The file of an action has the same two functions as that of a verb: `add_arguments` and `run`.
"""

import argparse
from importlib import import_module

from hyperseg.cli._common import HelpFormatter

ACTIONS: tuple[str, ...] = ()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the actions of the verb."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name in ACTIONS:
        module = import_module(f"hyperseg.cli.data.{name}")
        text = (module.__doc__ or "").strip()
        action = actions.add_parser(name, help=text.partition("\n")[0], description=text, formatter_class=HelpFormatter)
        module.add_arguments(action)
        action.set_defaults(run_action=module.run)


def run(args: argparse.Namespace) -> int:
    """Run the action; return the exit code."""
    return args.run_action(args)
