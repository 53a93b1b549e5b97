"""Show which parts are built, which backend runs each operator, and the reasons against the other backends."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No arguments."""


def run(args: argparse.Namespace) -> int:
    """Run the verb; return the exit code."""
    from hyperseg.info import main

    main()
    return 0
