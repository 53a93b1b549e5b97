"""Show which parts are built, which backend runs each operator, and the reasons against the other backends."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "--verify",
        action="store_true",
        help="first compare every kernel that is chosen here with the reference again, in child processes, and print a "
        "table; exit code 1 if one is wrong",
    )
    parser.add_argument("--json", action="store_true", help="print it as JSON, for a bug report")


def run(args: argparse.Namespace) -> int:
    """Run the verb; return the exit code."""
    from hyperseg.info import main

    return main(args.verify, args.json)
