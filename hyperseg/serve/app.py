"""The ASGI application: the page, what it needs to know, and the endpoint that segments an image."""

import asyncio
import base64
import contextlib
from collections import Counter
from collections.abc import Collection, Iterator
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import hyperseg
from hyperseg.runtime.arguments import name_of
from hyperseg.serve.errors import RequestError
from hyperseg.serve.guard import Guard, client_of, error_response
from hyperseg.serve.limits import Limits
from hyperseg.serve.requests import KINDS, PARAMETERS, Query, check_content_type, check_kind, parse_query, parse_size
from hyperseg.serve.worker import Result, Worker

# The files of the page, by the path of a request. They are read once; no request names a file.
_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/png.js": ("png.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}


def create_app(worker: Worker, size: str = "fit", hosts: Collection[str] = ()) -> Starlette:
    """Return the application.

    Args:
        worker: does the work; its limits are the application's.
        size: that the network runs at where a request gives none: "fit", "model", "native" or "HxW".
        hosts: names by which the server may be asked, besides localhost and addresses.
    """
    endpoints = _Endpoints(worker, size)
    routes = [Route(path, _page(*file)) for path, file in _FILES.items()]
    routes += [
        Route("/api/health", endpoints.health),
        Route("/api/networks", endpoints.networks),
        Route("/api/segment", endpoints.segment, methods=["POST"]),
    ]
    app = Starlette(
        routes=routes,
        middleware=[Middleware(Guard, limits=worker.limits, hosts=hosts)],
        exception_handlers={HTTPException: _http_error, RequestError: _request_error},
    )
    app.router.redirect_slashes = False
    return app


class _Endpoints:
    def __init__(self, worker: Worker, size: str) -> None:
        self._worker, self._limits = worker, worker.limits
        self._default = Query(next(iter(worker.networks)), worker.default_backend(), parse_size(size))
        self._uploads = Uploads(self._limits)

    async def health(self, request: Request) -> Response:
        """Say that the server lives, and how much it has to do."""
        pending, most = self._worker.pending, self._limits.queue
        return JSONResponse({"status": "ok", "pending": pending, "queue": most})

    async def networks(self, request: Request) -> Response:
        """List what can be chosen."""
        return JSONResponse(
            {
                "version": hyperseg.__version__,
                "device": str(self._worker.device),
                "dtype": self._worker.dtype if isinstance(self._worker.dtype, str) else name_of(self._worker.dtype),
                "default": {name: _size_text(getattr(self._default, name)) for name in PARAMETERS},
                "networks": [self._network(name) for name in self._worker.networks],
                "backends": ["auto", *self._worker.backends],
                "sizes": ["fit", "model", "native"],
                "kinds": list(KINDS),
                "limits": {
                    "body_bytes": self._limits.body_bytes,
                    "pixels": self._limits.pixels,
                    "network_pixels": self._limits.network_pixels,
                },
            }
        )

    def _network(self, name: str) -> dict[str, Any]:
        table = self._worker.label_sets[name]
        return {
            "name": name,
            "random_weights": self._worker.networks[name].random_weights,
            "resolution": self._worker.resolution(name),
            "classes": [{"name": n, "color": c} for n, c in zip(table.classes, table.colors, strict=True)],
            "background": table.background,
        }

    async def segment(self, request: Request) -> Response:
        """Segment the image in the body."""
        names = self._worker.networks
        items = request.query_params.multi_items()
        query = parse_query(items, list(names), ["auto", *self._worker.backends], self._default)
        check_content_type(request.headers.get("content-type"))
        if (encoding := request.headers.get("content-encoding", "identity")).lower() != "identity":
            raise RequestError(415, "content_encoding", f"the body is {encoding[:20]!a}; send the file as it is")
        with self._uploads.one_of(client_of(request.scope)):
            data = await received(request, self._limits)
        check_kind(data[:16])
        result = await _unless_disconnected(request, self._worker.segment(query, data))
        timing = {"Server-Timing": ", ".join(f"{k};dur={s * 1e3:.2f}" for k, s in result.seconds.items())}
        if "image/png" in request.headers.get("accept", "").lower():
            return Response(result.png, media_type="image/png", headers=timing)
        random = names[query.network].random_weights
        return JSONResponse(document(query, result, random), headers=timing)


def document(query: Query, result: Result, random_weights: bool) -> dict[str, Any]:
    """Return the JSON document of a result."""
    colors = result.label_set.colors
    return {
        "network": query.network,
        "random_weights": random_weights,
        "backend": query.backend,
        "height": result.height,
        "width": result.width,
        "network_size": result.network_size,
        "classes": [
            {"index": s.index, "name": s.name, "color": colors[s.index], "pixels": s.pixels, "share": s.share}
            for s in result.shares
        ],
        "milliseconds": {stage: round(seconds * 1e3, 2) for stage, seconds in result.seconds.items()},
        "mask_png": base64.b64encode(result.png).decode(),
    }


async def received(request: Request, limits: Limits) -> bytes:
    """Return the body of a request. Raises RequestError: it is too large, by its length or as it comes, or too slow."""
    too_large = RequestError(
        413, "too_large", f"the file has more than {limits.body_bytes / 2**20:g} MiB; shrink the image first"
    )
    announced = request.headers.get("content-length", "")
    body, size, refused = bytearray(), 0, announced.isdigit() and int(announced[:15]) > limits.body_bytes

    async def read() -> None:
        nonlocal refused, size
        async for chunk in request.stream():
            size += len(chunk)
            refused = refused or size > limits.body_bytes
            if not refused:
                body.extend(chunk)
            # Most clients read the response after they have sent all, so a little more than the limit is let pass.
            elif size > 2 * limits.body_bytes:
                return

    try:
        await asyncio.wait_for(read(), limits.upload_seconds)
    except (TimeoutError, asyncio.TimeoutError):
        if refused:
            raise too_large from None
        message = f"the body did not come within {limits.upload_seconds:g} seconds"
        raise RequestError(408, "slow_upload", message) from None
    except ClientDisconnect:
        raise RequestError(400, "disconnected", "the client left before the body had come") from None
    if refused:
        raise too_large
    return bytes(body)


class Uploads:
    """Counts the requests whose body is being received: each may take its time and memory."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._of: Counter[str] = Counter()

    @contextlib.contextmanager
    def one_of(self, client: str) -> Iterator[None]:
        """Count one more of a client inside the block. Raises RequestError if there are too many."""
        if self._of[client] >= self._limits.uploads_of_client:
            message = f"{self._of[client]} files of this client are being received already; wait for them"
            raise RequestError(429, "uploads", message, {"Retry-After": "1"})
        if self._of.total() >= self._limits.uploads:
            message = f"{self._of.total()} files are being received already; try again in a second"
            raise RequestError(503, "busy", message, {"Retry-After": "1"})
        self._of[client] += 1
        try:
            yield
        finally:
            self._of[client] -= 1
            if not self._of[client]:
                del self._of[client]


async def _unless_disconnected(request: Request, work: Any) -> Result:
    """Return the result of `work`, which is cancelled when the client leaves."""
    result = asyncio.ensure_future(work)
    left = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((result, left), return_when=asyncio.FIRST_COMPLETED)
        if not result.done():
            raise RequestError(400, "disconnected", "the client left before there was a result")
        return result.result()
    finally:
        left.cancel()
        result.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _page(name: str, kind: str) -> Any:
    data = resources.files("hyperseg.serve").joinpath("page", name).read_bytes()

    async def page(request: Request) -> Response:
        return Response(data, media_type=kind, headers={"Cache-Control": "no-cache"})

    return page


def _size_text(value: Any) -> str:
    return value if isinstance(value, str) else "x".join(map(str, value))


async def _request_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return error_response(error)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        message = "this address takes another method: POST /api/segment, GET for the others"
        return error_response(RequestError(405, "method", message, error.headers))
    known = "/, /api/networks, /api/segment and /api/health"
    return error_response(RequestError(error.status_code, "not_found", f"there is nothing here; there are {known}"))
