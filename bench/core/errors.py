"""The benchmarks' own exception, and one-line messages of others."""

from __future__ import annotations

import itertools


class Refused(Exception):
    """Something cannot be measured; the message is for the user."""


def one_line(error: BaseException) -> str:
    """Return an exception's message on one line: the first line, with those of its list if it introduces one.

    An exception without a message gives its type.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    listed = itertools.takewhile(lambda line: line.startswith("- "), lines[1:])
    return " ".join([lines[0], "; ".join(line.removeprefix("- ") for line in listed)]).strip()
