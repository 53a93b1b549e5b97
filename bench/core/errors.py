"""The benchmarks' own exception, and one-line messages of others."""

from __future__ import annotations


class Refused(Exception):
    """Something cannot be measured; the message is for the user."""


def one_line(error: BaseException) -> str:
    """Return the first line of an exception's message that is not empty, or the exception's type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
