"""Requests that are wrong or hostile: each is refused with its status and a message, and the server goes on."""

import asyncio
import http.client
import socket
import struct
import threading
import time
import zlib

import numpy as np
import pytest

from hyperseg.serve import Limits
from hyperseg.serve.guard import Guard
from tests.serve.serving import as_file, painted, serving

GOOD = as_file(painted()[0])
JPEG = as_file(painted()[0], "JPEG")


@pytest.fixture(scope="module")
def site(known_engines):
    """A server with small limits, so that tests are quick."""
    limits = Limits(
        body_bytes=200_000, pixels=1_000_000, network_pixels=500_000, rate=1e6, upload_seconds=0.4, head_seconds=0.4
    )
    with serving(limits, hosts=["seg.example.org"]) as running:
        yield running


@pytest.fixture(autouse=True)
def lives(site):
    """After each test the server is idle and right."""
    yield
    assert site.segment(GOOD).status == 200
    assert site.ask("/api/health").json["pending"] == 0


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, data: bytes, color: int = 0) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", data) + chunk(b"IEND", b"")


ZEROS = zlib.compress(bytes(30_000_000))  # 30 MB in 30 kB
BODIES = {
    "empty": (b"", 400, "no body"),
    "text": (b"hello", 415, "no image of a kind"),
    "html": (b"<html><script>alert(1)</script>", 415, "JPEG, PNG, WebP"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>", 415, "no image"),
    "a path": (b"/etc/passwd", 415, "no image"),
    "an address": (b"http://127.0.0.1:22/", 415, "no image"),
    "zip": (b"PK\x03\x04" + bytes(100), 415, "no image"),
    "pdf": (b"%PDF-1.7" + bytes(100), 415, "no image"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n" + bytes(100), 415, "no image"),
    "tiff": (as_file(painted()[0], "TIFF"), 415, "no image"),
    "one byte": (b"\xff", 415, "no image"),
    "head of a JPEG": (JPEG[:3], 422, "damaged"),
    "truncated JPEG": (JPEG[: len(JPEG) // 2], 422, "damaged"),
    "truncated PNG": (GOOD[: len(GOOD) // 2], 422, "damaged"),
    "wrong checksum": (GOOD[:60] + bytes([GOOD[60] ^ 1]) + GOOD[61:], 422, "damaged"),
    "noise after a head": (b"\xff\xd8\xff\xe0" + np.random.default_rng(1).bytes(5000), 422, "damaged"),
    "bomb by its head": (png(60000, 60000, b""), 413, "too many pixels"),
    "bomb": (png(5000, 6000, ZEROS), 413, "30,000,000 pixels"),
    "bomb of a gif": (b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x02\x02D\x01\0;", 413, "pixels"),
    "one row of a million": (png(1_000_001, 1, zlib.compress(bytes(1_000_002))), 413, "pixels"),
    "no pixels": (png(0, 10, zlib.compress(bytes(10))), 422, "damaged"),
    "less data than its head says": (png(300, 300, zlib.compress(bytes(10))), 422, "damaged"),
}


@pytest.mark.parametrize("name", BODIES)
def test_bodies(site, name):
    body, status, message = BODIES[name]
    reply = site.segment(body)
    assert reply.status == status, reply.body
    assert message in reply.message
    assert "Traceback" not in reply.message


def test_a_bomb_of_metadata_does_not_matter(site):
    text = chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(50_000_000)))
    assert site.segment(GOOD[:33] + text + GOOD[33:]).status == 200


QUERIES = {
    "path as a network": ("?network=../../etc/passwd", 400, "there is no network '../../etc/passwd' here"),
    "zero byte": ("?network=camvid%00", 400, "there is no network 'camvid\\x00'"),
    "new lines": ("?network=a%0d%0aSet-Cookie:%20x", 400, "'a\\r\\nSet-Cookie: x'"),
    "long name": ("?network=" + "a" * 5000, 400, "aaa...'"),
    "unknown backend": ("?backend=gpu", 400, "give auto"),
    "a file": ("?path=/etc/passwd", 400, "there is no parameter 'path'"),
    "an address": ("?url=http://169.254.169.254/", 400, "there is no parameter 'url'"),
    "twice": ("?size=fit&size=native", 400, "size is given twice"),
    "negative": ("?size=-64x64", 400, "size '-64x64' is not understood"),
    "zero": ("?size=0x64", 400, "not understood"),
    "huge": ("?size=" + "9" * 4000 + "x1", 400, "not understood"),
    "other digits": ("?size=%D9%A1%D9%A2x64", 400, "not understood"),
    "nothing": ("?size=", 400, "not understood"),
    "small": ("?size=1x1", 422, "each side may have 64 to 4096"),
    "long": ("?size=64x9999", 422, "each side may have"),
    "large": ("?size=2000x2000", 422, "4,000,000 pixels"),
}


@pytest.mark.parametrize("name", QUERIES)
def test_queries(site, name):
    query, status, message = QUERIES[name]
    reply = site.segment(GOOD, query)
    assert reply.status == status
    assert message in reply.message
    assert len(reply.message) < 300


PATHS = {
    "climbing": ("/../../../../etc/passwd", 404),
    "escaped": ("/%2e%2e/%2e%2e/etc/passwd", 404),
    "double slash": ("//etc/passwd", 404),
    "back slash": ("/..\\..\\windows", 404),
    "the package": ("/page/index.html", 404),
    "python": ("/api/segment.py", 404),
    "zero byte": ("/page.css%00.png", 404),
    "with a slash": ("/api/segment/", 404),
    "documents": ("/openapi.json", 404),
}


@pytest.mark.parametrize("name", PATHS)
def test_paths(site, name):
    path, status = PATHS[name]
    reply = site.ask(path)
    assert reply.status == status
    assert "there is nothing here" in reply.message
    assert "default-src 'none'" in reply.headers["Content-Security-Policy"]


HEADERS = {
    "a form": ({"Content-Type": "multipart/form-data; boundary=x"}, 415, "the bytes of the file as the body"),
    "a simple form": ({"Content-Type": "application/x-www-form-urlencoded"}, 415, "octet-stream"),
    "text": ({"Content-Type": "text/plain"}, 415, "the body is 'text/plain'"),
    "compressed": ({"Content-Encoding": "gzip"}, 415, "send the file as it is"),
    "another name": ({"Host": "evil.example"}, 421, "this server is not called 'evil.example'"),
    "a name that begins like ours": ({"Host": "localhost.evil.example"}, 421, "--allow-host"),
    "a name with a user": ({"Host": "localhost@evil.example"}, 421, "is not called"),
    "a malformed port": ({"Host": "localhost:99999999"}, 421, "is not called"),
    "another origin": ({"Origin": "https://evil.example"}, 403, "other sites"),
    "another port": ({"Origin": "http://127.0.0.1:1"}, 403, "other sites"),
    "no origin": ({"Origin": "null"}, 403, "other sites"),
    "cross site": ({"Sec-Fetch-Site": "cross-site"}, 403, "other sites"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers(site, name):
    headers, status, message = HEADERS[name]
    reply = site.ask("/api/segment", GOOD, {"Content-Type": "image/png", **headers})
    assert reply.status == status
    assert message in reply.message


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:80", "[::1]:8000", "10.1.2.3", "SEG.example.org", "a.localhost"]
)
def test_hosts_that_are_ours(site, host):
    assert site.ask("/api/health", headers={"Host": host}).status == 200


@pytest.mark.parametrize("origin", ["https://seg.example.org", "here"])
def test_origins_that_are_ours(site, origin):
    assert site.segment(GOOD, Origin=site.url if origin == "here" else origin).status == 200


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_methods(site, method):
    reply = site.ask("/api/segment", method=method)
    assert reply.status == 405
    assert "POST /api/segment" in reply.message
    assert "Access-Control-Allow-Origin" not in reply.headers


def test_a_body_that_is_too_large(site):
    reply = site.segment(bytes(200_001))
    assert reply.status == 413
    assert "more than 0.190735 MiB" in reply.message


def test_a_body_that_says_no_length(site):
    reply = site.ask("/api/segment", (bytes(10_000) for _ in range(25)), {"Content-Type": "image/png"})
    assert reply.status == 413


def raw(site, data: bytes, pause: float = 0.0) -> bytes:
    """Send bytes, wait, and return what comes until the server closes the connection."""
    with socket.create_connection(("127.0.0.1", site.port), timeout=10) as connection:
        connection.sendall(data)
        time.sleep(pause)
        received = b""
        try:
            while part := connection.recv(65536):
                received += part
        except ConnectionResetError:
            pass
        return received


def head(length: object, *lines: str) -> bytes:
    fields = ["POST /api/segment HTTP/1.1", "Host: localhost", "Content-Type: image/png", *lines]
    return "\r\n".join([*fields, f"Content-Length: {length}", "", ""]).encode()


def test_a_body_without_end(site):
    """More comes than is taken: the connection is closed without waiting for the rest."""
    assert closed_after(site, head(10**12), bytes(100_000)) < 5


def test_a_slow_body(site):
    reply = raw(site, head(5000) + GOOD[:100])
    assert b" 408 " in reply.partition(b"\r\n")[0]
    assert b"did not come within 0.4 seconds" in reply


def test_a_slow_head(site):
    start = time.monotonic()
    assert raw(site, b"POST /api/seg") == b""
    assert raw(site, b"") == b""
    assert time.monotonic() - start < 5


def test_a_head_that_comes_byte_by_byte(site):
    assert closed_after(site, b"GET / HTTP/1.1\r\nX: ", b"a", pause=0.02) < 5


def closed_after(site, start: bytes, more: bytes, pause: float = 0.0) -> float:
    """Send a start and then more and more. Return the seconds until the server closes the connection."""
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", site.port), timeout=10) as connection:
        try:
            connection.sendall(start)
            while time.monotonic() < began + 8:
                connection.sendall(more)
                time.sleep(pause)
        except OSError:  # a reset or a broken pipe
            pass
    return time.monotonic() - began


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GARBAGE\r\n\r\n",
        head("-5"),
        head("5", "Content-Length: 6"),
        head("5", "Transfer-Encoding: nonsense"),
    ],
    ids=["header", "path", "tls", "two hosts", "no host", "garbage", "negative", "two lengths", "transfer encoding"],
)
def test_heads_that_are_wrong(site, data):
    status = raw(site, data).partition(b"\r\n")[0].split()[1]
    assert status in (b"400", b"414", b"431", b"501")


def test_a_web_socket(site):
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "eA==",
    }
    assert site.ask("/api/segment", headers=upgrade).status in (403, 405, 426)


def test_clients_that_leave(site):
    for data in (head(5000) + GOOD[:100], head(len(GOOD)) + GOOD, head(len(GOOD)) + GOOD[:-1]):
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", site.port), timeout=10) as connection:
                connection.sendall(data)
    deadline = time.monotonic() + 10
    while site.ask("/api/health").json["pending"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_many_at_once(site):
    """Wrong and right ones together, each with its own result."""
    wrong = [(body, status) for body, status, _ in BODIES.values()]
    found: list[tuple[int, int]] = []

    def client(number: int) -> None:
        for turn in range(4):
            body, status = wrong[(number + 6 * turn) % len(wrong)] if (number + turn) % 2 else (GOOD, 200)
            while (reply := site.segment(body)).status in (429, 503):
                assert reply.headers["Retry-After"]
                time.sleep(0.01)
            found.append((reply.status, status))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 24
    assert all(status == expected for status, expected in found)


def test_a_response_that_is_not_taken():
    """A client that reads nothing is left after a while."""

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def never(message):
        await asyncio.Event().wait()

    scope = {
        "type": "http",
        "method": "GET",
        "raw_path": b"/",
        "query_string": b"",
        "headers": [(b"host", b"localhost")],
    }
    guard = Guard(app, Limits(send_seconds=0.05))
    asyncio.run(asyncio.wait_for(guard(scope, None, never), 5))


def test_errors_are_json_with_a_code(site):
    reply = site.segment(b"hello")
    assert reply.headers["Content-Type"] == "application/json"
    assert reply.json["error"]["code"] == "unknown_kind"
    assert isinstance(http.client.responses[reply.status], str)
