"""The error of a request: a status, a code for programs, a message for people."""

from collections.abc import Mapping


class RequestError(Exception):
    """A request that is refused or failed. The message says what was wrong and what to do.

    status: of HTTP.
    code: the kind of error, one word in lower case.
    headers: of the response, such as Retry-After.
    """

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, dict(headers or {})


def shown(value: str) -> str:
    """Return what a client sent as it may stand in a message: one line of printable ASCII, not long."""
    short = value if len(value) <= 60 else f"{value[:57]}..."
    return ascii(short)
