"""Who may ask, and how often: hosts, origins, rates, times, and the headers of every response. It knows no image."""

import asyncio
import ipaddress
import logging
import time
from collections import OrderedDict
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hyperseg.serve.errors import RequestError, shown
from hyperseg.serve.limits import Limits

logger = logging.getLogger("hyperseg.serve")

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Cache-Control": "no-store",
}
# Of the address and the headers. uvicorn bounds only what comes in parts.
_MOST_TARGET, _MOST_HEADERS = 8192, 16384
_MOST_CLIENTS = 4096  # whose rates are remembered


class Guard:
    """Passes on the requests that may be made, and adds the headers of every response.

    Args:
        hosts: names, besides localhost and addresses, that the Host header may have. A page elsewhere that gives its
            own name this machine's address ("DNS rebinding") sends its own name.
        rate: see `Limits`.
    """

    def __init__(self, app: ASGIApp, limits: Limits, hosts: Collection[str] = ()) -> None:
        self._app, self._limits = app, limits
        self._hosts = {host.lower().rstrip(".") for host in hosts}
        self._rates = Rates(limits.rate)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request, as ASGI has it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # uvicorn refuses a WebSocket that nobody accepts
        started = False

        async def guarded(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            # A client that does not take its response would keep it in memory.
            await asyncio.wait_for(send(message), self._limits.send_seconds)

        try:
            self._check(scope)
            await self._app(scope, receive, guarded)
        except RequestError as error:
            await error_response(error)(scope, receive, guarded)
        except (TimeoutError, asyncio.TimeoutError):
            logger.info("a client did not take its response")
        except Exception:
            logger.exception("a request failed")
            if not started:
                message = "the server failed on this request; its log says why"
                await error_response(RequestError(500, "internal", message))(scope, receive, guarded)

    def _check(self, scope: Scope) -> None:
        if len(scope["raw_path"]) + len(scope["query_string"]) > _MOST_TARGET:
            raise RequestError(414, "long_address", f"the address has more than {_MOST_TARGET} characters")
        if sum(len(name) + len(value) for name, value in scope["headers"]) > _MOST_HEADERS:
            raise RequestError(431, "long_headers", f"the headers have more than {_MOST_HEADERS} bytes")
        headers = Headers(scope=scope)
        host = self._host(headers)
        client = client_of(scope)
        if (wait := self._rates.wait(client)) > 0:
            message = f"more than {self._limits.rate:g} requests per second came from this client; wait a moment"
            raise RequestError(429, "rate", message, {"Retry-After": str(max(1, round(wait)))})
        if scope["method"] not in ("GET", "HEAD"):
            self._check_origin(headers, host)

    def _host(self, headers: Headers) -> str:
        """Return the Host header. Raises RequestError for a missing one or a name that is not ours."""
        given = headers.getlist("host")
        if len(given) != 1:
            raise RequestError(400, "bad_host", "the request has no Host header, or several; give one")
        if not self._is_ours(name_of_host(given[0])):
            advice = "use localhost or the address, or start the server with --allow-host NAME"
            raise RequestError(421, "bad_host", f"this server is not called {shown(given[0])}; {advice}")
        return given[0]

    def _is_ours(self, name: str | None) -> bool:
        if name is None:
            return False
        return name == "localhost" or name.endswith(".localhost") or name in self._hosts or _is_address(name)

    def _check_origin(self, headers: Headers, host: str) -> None:
        """Refuse what a page of another site sends: it could not read the result, but would keep the server busy."""
        origin = headers.get("origin")
        cross = headers.get("sec-fetch-site") in ("cross-site", "same-site")
        if origin is not None:
            parts = urlsplit(origin)
            # A reverse proxy may change the Host header, but not the page's name.
            cross = parts.netloc.lower() != host.lower() and parts.hostname not in self._hosts
        if cross:
            raise RequestError(403, "cross_origin", "pages of other sites may not use this server")


def error_response(error: RequestError) -> JSONResponse:
    """Return the response for an error. The connection is closed, because the body may not have been read."""
    document = {"error": {"code": error.code, "message": error.message}}
    return JSONResponse(document, error.status, {"Connection": "close", **error.headers})


def client_of(scope: Scope) -> str:
    """Return the address of a client; of IPv6 the network of 64 bits, all of which one client may have."""
    address = scope["client"][0] if scope.get("client") else ""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 6:
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed.packed[:8] + bytes(8), 64)))
    return address


def name_of_host(value: str) -> str | None:
    """Return the name or address in a Host header, in lower case without the port; None if it is malformed."""
    try:
        parts = urlsplit(f"//{value}")
        parts.port  # noqa: B018 - raises for a malformed one
    except ValueError:
        return None
    if parts.netloc != value or parts.username is not None or not parts.hostname:
        return None
    return parts.hostname.rstrip(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class Rates:
    """Requests per client: each has `2 * rate` at first, and gets `rate` per second."""

    def __init__(self, rate: float, most_clients: int = _MOST_CLIENTS) -> None:
        self._rate, self._burst, self._most = rate, max(1.0, 2 * rate), most_clients
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # requests left, at a time

    def wait(self, client: str, now: float | None = None) -> float:
        """Count a request. Return 0, or the seconds to wait if there were too many; then it is not counted."""
        now = time.monotonic() if now is None else now
        left, then = self._left.pop(client, (self._burst, now))
        left = min(self._burst, left + (now - then) * self._rate)
        allowed = left >= 1
        self._left[client] = (left - 1 if allowed else left, now)
        while len(self._left) > self._most:
            self._left.popitem(last=False)
        return 0.0 if allowed else (1 - left) / self._rate
