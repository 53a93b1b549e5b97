"""Rates, the queue, times, and what is kept."""

import asyncio
import threading
import time

import numpy as np
import pytest

from hyperseg.serve import Limits, Network, Worker
from hyperseg.serve.errors import RequestError
from hyperseg.serve.guard import Rates, client_of, name_of_host
from hyperseg.serve.requests import Query, fitted
from tests.predict.networks import NearestColor
from tests.serve.serving import SeenEngine, as_file, labels_in, networks, painted, serving

GOOD = as_file(painted()[0])
ANY = Query("camvid", "auto", "native")


@pytest.fixture
def paused(known_engines):
    """The networks do nothing until the test sets the event that this returns."""
    SeenEngine.pause.clear()
    yield SeenEngine.pause
    SeenEngine.pause.set()


def until(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_the_rate_of_a_client(known_engines):
    with serving(Limits(rate=2)) as site:
        replies = [site.ask("/api/health") for _ in range(6)]
    assert [reply.status for reply in replies[:4]] == [200] * 4
    late = [reply for reply in replies[4:] if reply.status == 429]
    assert late
    assert late[0].headers["Retry-After"] == "1"
    assert "more than 2 requests per second" in late[0].message


def test_rates():
    rates = Rates(2, most_clients=2)
    assert [rates.wait("a", 10.0) for _ in range(4)] == [0] * 4
    assert rates.wait("a", 10.0) == pytest.approx(0.5)
    assert rates.wait("b", 10.0) == 0
    assert rates.wait("a", 10.5) == 0
    assert rates.wait("a", 10.5) > 0
    rates.wait("c", 11)  # the longest unseen, b, is forgotten
    assert len(rates._left) == 2


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("not an address", "not an address"),
    ],
)
def test_clients(address, client):
    assert client_of({"client": (address, 1)}) == client


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("Localhost.:80", "localhost"),
        ("[::1]:80", "::1"),
        ("10.0.0.1", "10.0.0.1"),
        ("", None),
        ("a:b", None),
        ("u@a", None),
        ("a/b", None),
        ("a?b", None),
        ("[::1", None),
    ],
)
def test_names_of_hosts(value, name):
    assert name_of_host(value) == name


def test_a_full_queue(paused):
    with serving(Limits(rate=1e6, queue=2)) as site:
        done = []
        threads = [threading.Thread(target=lambda: done.append(site.segment(GOOD).status)) for _ in range(2)]
        for thread in threads:
            thread.start()
        until(lambda: site.ask("/api/health").json["pending"] == 2)
        reply = site.segment(GOOD)
        assert (reply.status, reply.headers["Retry-After"]) == (503, "1")
        assert "2 images wait already" in reply.message
        paused.set()
        for thread in threads:
            thread.join()
        assert done == [200, 200]
        assert site.segment(GOOD).status == 200


def test_a_result_that_takes_too_long(paused):
    with serving(Limits(rate=1e6, result_seconds=0.2)) as site:
        reply = site.segment(GOOD)
        assert reply.status == 504
        assert "no result after 0.2 seconds" in reply.message
        assert site.ask("/api/health").json["pending"] == 1
        paused.set()
        until(lambda: site.ask("/api/health").json["pending"] == 0)
        assert site.segment(GOOD).status == 200


def test_an_image_whose_client_has_left_is_not_done(paused):
    worker = Worker(networks())

    async def main() -> None:
        first, second = (asyncio.ensure_future(worker.segment(ANY, GOOD)) for _ in range(2))
        await asyncio.sleep(0.05)
        second.cancel()
        await asyncio.wait([second])
        assert worker.pending == 1
        paused.set()
        assert (await first).png

    asyncio.run(main())
    assert worker.pending == 0
    worker.close()
    with pytest.raises(RequestError, match="being stopped"):
        asyncio.run(worker.segment(ANY, GOOD))


def test_uploads_of_one_client(known_engines):
    import socket

    limits = Limits(rate=1e6, uploads_of_client=2)
    with serving(limits) as site:
        head = b"POST /api/segment HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\n"
        slow = [socket.create_connection(("127.0.0.1", site.port)) for _ in range(2)]
        for connection in slow:
            connection.sendall(head + b"\xff\xd8")
        until(lambda: site.segment(GOOD).status == 429)
        for connection in slow:
            connection.close()
        until(lambda: site.segment(GOOD).status == 200)


def test_engines_are_few(known_engines):
    worker = Worker(networks(), limits=Limits(engines=2))
    for height in (64, 70, 80, 90):
        assert asyncio.run(worker.segment(Query("camvid", "auto", (height, 64)), GOOD)).network_size == (height, 64)
        assert len(worker._predictors) <= 2
    result = asyncio.run(worker.segment(Query("camvid", "auto", (64, 64)), GOOD))
    assert "build" in result.seconds
    assert "build" not in asyncio.run(worker.segment(Query("camvid", "auto", (64, 64)), GOOD)).seconds
    worker.close()


def test_results_do_not_mix(known_engines):
    """Clients at the same time get their own labels."""
    with serving(Limits(rate=1e6, queue=32, uploads_of_client=16)) as site:
        wrong = []

        def client(number: int) -> None:
            image, labels = painted(64 + number, 80 + number)
            for _ in range(4):
                reply = site.segment(as_file(image), "?size=native", Accept="image/png")
                if reply.status != 200 or not np.array_equal(labels_in(reply.body), labels):
                    wrong.append((number, reply.status))

        threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


@pytest.mark.parametrize(
    ("image", "size"),
    [
        ((1080, 1920), (544, 960)),
        ((3000, 4000), (640, 832)),
        ((100, 150), (96, 160)),
        ((1, 1), (64, 64)),
        ((1, 16_000_000), (64, 4096)),
    ],
)
def test_a_fitted_size(image, size):
    assert fitted(image, 512 * 1024, Limits()) == size


def test_networks_have_names_of_their_own():
    with pytest.raises(ValueError, match="different names"):
        Worker([Network("a", NearestColor()), Network("a", NearestColor())])
    with pytest.raises(ValueError, match="different names"):
        Worker([])


def test_limits_are_positive():
    with pytest.raises(ValueError, match="queue is 0"):
        Limits(queue=0)


def test_errors_of_the_network_are_named(known_engines, monkeypatch):
    from hyperseg.ops import BackendError
    from hyperseg.runtime import EngineError

    worker = Worker(networks())
    for error, status in (
        (BackendError("no"), 422),
        (EngineError("no"), 500),
        (MemoryError(), 413),
        (RuntimeError("CUDA out of memory"), 413),
    ):

        def fail(self, frames, error=error):
            raise error

        monkeypatch.setattr(SeenEngine, "logits", fail)
        with pytest.raises(RequestError) as found:
            asyncio.run(worker.segment(ANY, GOOD))
        assert found.value.status == status
    worker.close()


def test_a_fault_is_logged_and_not_shown(known_engines, monkeypatch, caplog):
    def fail(self, frames):
        raise KeyError("secret")

    with serving() as site:
        monkeypatch.setattr(SeenEngine, "logits", fail)
        reply = site.segment(GOOD)
        assert reply.status == 500
        assert "secret" not in reply.message
        assert "secret" in caplog.text
        assert site.ask("/api/health").status == 200


@pytest.mark.slow
def test_memory_is_flat(true_network):
    """300 images with a true network and 30 engines built: memory stops growing.

    In the first 100 images malloc's pages for engines of three sizes are mapped, which stay (`keep_freed_memory`).
    """

    def resident() -> float:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096 / 2**20

    worker = Worker([Network("own", true_network.model)], limits=Limits(engines=2))
    rng = np.random.default_rng(0)
    files = [as_file(rng.integers(0, 256, (200 + 30 * i, 300, 3), np.uint8), "JPEG") for i in range(5)]
    sizes = [(64, 96), (96, 96), (128, 128)]
    memory = []
    for turn in range(300):
        size = sizes[(turn // 10) % 3]
        asyncio.run(worker.segment(Query("own", "auto", size), files[turn % 5]))
        memory.append(resident())
    print(f"MiB after 100, 200 and 300 images: {memory[99]:.0f}, {memory[199]:.0f}, {memory[299]:.0f}")
    assert max(memory[200:]) < max(memory[100:200]) + 20
    worker.close()
