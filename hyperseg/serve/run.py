"""The server's process: its socket, uvicorn with its limits, and connections that send nothing."""

import asyncio
import socket
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from hyperseg.serve.limits import Limits

_HEAD_BYTES = 16384  # of a request: its line and headers


def bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to an address, which uvicorn will listen at; port 0: any that is free. Raises OSError."""
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except BaseException:
        bound.close()
        raise
    return bound


def server(app: Any, limits: Limits, proxy: bool = False) -> uvicorn.Server:
    """Return a uvicorn server for the application. `run(sockets=[bind(...)])` runs it until SIGINT or SIGTERM.

    proxy: take the address of a client from the X-Forwarded-For header of a proxy on this machine. Without a
    proxy that sets it, clients could choose their addresses.
    """
    config = uvicorn.Config(
        app,
        http=_protocol(limits.head_seconds),
        ws="none",
        lifespan="off",
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=proxy,
        forwarded_allow_ips="127.0.0.1,::1" if proxy else "",
        limit_concurrency=limits.connections,
        h11_max_incomplete_event_size=_HEAD_BYTES,
        timeout_keep_alive=max(1, round(limits.head_seconds)),
        timeout_graceful_shutdown=5,
    )
    return uvicorn.Server(config)


def _protocol(seconds: float) -> type[asyncio.Protocol]:
    """Return uvicorn's protocol with a bound on the time that a connection takes to send the head of a request.

    uvicorn itself limits the time between requests only: one byte per minute keeps a connection open for ever.
    """

    class Protocol(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)  # type: ignore[arg-type]
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._stop()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._busy():
                self._stop()
            else:
                self._watch()

        def _busy(self) -> bool:
            return self.cycle is not None and not self.cycle.response_complete

        def _watch(self) -> None:
            if self._timer is None:
                self._timer = self.loop.call_later(seconds, self._late)

        def _stop(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _late(self) -> None:
            self._timer = None
            if not self._busy() and not self.transport.is_closing():
                self.transport.close()

    return Protocol


__all__ = ["bind", "server"]
