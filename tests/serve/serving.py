"""A server in a thread of this process, with networks whose output is known, and a client."""

import contextlib
import http.client
import io
import json
import threading
import time
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from hyperseg.data import CAMVID, VOC
from hyperseg.ops import named_backend
from hyperseg.serve import Limits, Network, Worker, create_app
from hyperseg.serve.run import bind, server
from tests.predict.networks import Engine, NearestColor

BACKENDS_SEEN: list[str | None] = []


class SeenEngine(Engine):
    """Notes the backend that is named when it runs, and waits while the test says so."""

    pause = threading.Event()  # set: it does not wait
    pause.set()

    def logits(self, frames):
        BACKENDS_SEEN.append(named_backend())
        assert SeenEngine.pause.wait(20)
        return super().logits(frames)


def build_engine(model, size, dtype, device, check):
    return SeenEngine(model, size)


def networks() -> list[Network]:
    return [
        Network("camvid", NearestColor(CAMVID)),
        Network("voc", NearestColor(VOC, name="hyperseg-l-voc"), random_weights=True),
    ]


class Reply(SimpleNamespace):
    """status, headers and body of a response."""

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.body)

    @property
    def message(self) -> str:
        return self.json["error"]["message"]


class Serving:
    """A running server: `url`, `worker`, and requests to it."""

    def __init__(self, worker: Worker, port: int) -> None:
        self.worker, self.port, self.url = worker, port, f"http://127.0.0.1:{port}"

    def ask(
        self, path: str, body: Any = None, headers: Mapping[str, str] | None = None, method: str | None = None
    ) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", urlsplit(self.url).port, timeout=30)
        try:
            chunked = body is not None and not isinstance(body, bytes)
            method = method or ("GET" if body is None else "POST")
            connection.request(method, path, body, dict(headers or {}), encode_chunked=chunked)
            response = connection.getresponse()
            return Reply(status=response.status, headers=response.headers, body=response.read())
        finally:
            connection.close()

    def segment(self, data: bytes, query: str = "", **headers: str) -> Reply:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.ask(f"/api/segment{query}", data, {"Content-Type": "image/png", **given})


@contextlib.contextmanager
def serving(limits: Limits | None = None, **options: Any) -> Iterator[Serving]:
    """Run a server in a thread."""
    limits = limits or Limits(rate=1e6)
    worker = Worker(networks(), limits=limits)
    with bind("127.0.0.1", 0) as listening:
        runs = server(create_app(worker, **options), limits)
        thread = threading.Thread(target=runs.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + 20
        while not runs.started:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        try:
            yield Serving(worker, listening.getsockname()[1])
        finally:
            runs.should_exit = runs.force_exit = True
            thread.join(20)
            worker.close()
    assert not thread.is_alive()


def painted(height: int = 90, width: int = 120, table=CAMVID) -> tuple[np.ndarray, np.ndarray]:
    """Return an image in the colours of the classes, in stripes of odd widths, and its labels."""
    labels = np.zeros((height, width), np.uint8)
    for index in range(len(table)):
        labels[:, index * width // len(table) :] = index
    labels[height // 2 :] = labels[height // 2 :, ::-1]
    return np.array(table.colors, np.uint8)[labels], labels


def as_file(image: np.ndarray, form: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, form, **options)
    return file.getvalue()


def labels_in(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as image:
        assert image.mode == "P"
        return np.array(image)
