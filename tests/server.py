"""A small HTTP server on this machine that behaves well or badly, to test downloads without a network."""

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Page:
    """A file on the server, and how it is sent.

    status: 404 and others are sent without the file.
    cut: bytes after which the connection is closed, for each of the first requests; None sends all.
    ranges: whether requests for a part are supported.
    location: of a redirect.
    pause: seconds before the first byte.
    chunked: without a Content-Length.
    """

    data: bytes = b""
    status: int = 200
    failures: list[int] = field(default_factory=list)
    cuts: list[int | None] = field(default_factory=list)
    ranges: bool = True
    tag: str | None = '"1"'
    location: str | None = None
    pause: float = 0.0
    chunked: bool = False


class Server:
    """The pages by path, the address, and the headers of the requests that came."""

    def __init__(self) -> None:
        self.pages: dict[str, Page] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.url = ""

    def ranges(self) -> list[str | None]:
        """Return the Range header of each request."""
        return [headers.get("Range") for _, headers in self.requests]


@contextlib.contextmanager
def serve() -> Iterator[Server]:
    """Run a server in a thread."""
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            server.requests.append((self.path, dict(self.headers)))
            page = server.pages.get(self.path, Page(status=404))
            self.close_connection = True
            time.sleep(page.pause)
            status = page.failures.pop(0) if page.failures else page.status
            if page.location is not None:
                self.send_response(302)
                self.send_header("Location", page.location)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if status != 200:
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_page(page)

        def send_page(self, page: Page) -> None:
            data, start = page.data, 0
            wanted = self.headers.get("Range")
            if wanted and page.ranges and self.headers.get("If-Range") == page.tag:
                start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start and start >= len(data):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(data)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            if page.tag is not None:
                self.send_header("ETag", page.tag)
            if page.chunked:
                self.send_header("Transfer-Encoding", "chunked")
            else:
                self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            cut = page.cuts.pop(0) if page.cuts else None
            body = data[start : None if cut is None else start + cut]
            if page.chunked:
                self.wfile.write(b"%x\r\n" % len(body) + body + b"\r\n" + (b"0\r\n\r\n" if cut is None else b""))
            else:
                self.wfile.write(body)

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{http.server_address[1]}"
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
