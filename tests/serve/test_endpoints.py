"""What the endpoints return for requests that are right."""

import base64

import numpy as np
import pytest

from hyperseg.data import CAMVID, VOC
from tests.serve import serving as parts
from tests.serve.serving import as_file, labels_in, painted


def test_the_page_and_its_files(site):
    kinds = {"/": "text/html", "/page.css": "text/css", "/page.js": "text/javascript", "/png.js": "text/javascript"}
    for path, kind in {**kinds, "/icon.svg": "image/svg+xml"}.items():
        reply = site.ask(path)
        assert reply.status == 200
        assert reply.headers["Content-Type"].startswith(kind)
        assert len(reply.body) > 200
        assert "default-src 'none'" in reply.headers["Content-Security-Policy"]
        assert reply.headers["X-Content-Type-Options"] == "nosniff"
        assert "Access-Control-Allow-Origin" not in reply.headers
        assert "Server" not in reply.headers


def test_the_page_takes_nothing_from_elsewhere(site):
    for path in ("/", "/page.css", "/page.js", "/png.js"):
        text = site.ask(path).body.decode()
        assert "https://" not in text.replace("https:// and localhost", "")
        assert "url(" not in text
        assert " style=" not in text
        assert 'onclick="' not in text


def test_networks(site):
    reply = site.ask("/api/networks").json
    assert reply["default"] == {"network": "camvid", "backend": "auto", "size": "fit"}
    assert [(each["name"], each["random_weights"]) for each in reply["networks"]] == [("camvid", False), ("voc", True)]
    assert reply["networks"][0]["classes"][8] == {"name": "Car", "color": list(CAMVID.colors[8])}
    assert reply["networks"][1]["background"] == VOC.background
    assert reply["backends"][0] == "auto"
    assert "reference" in reply["backends"]
    assert reply["limits"]["body_bytes"] == 20 * 2**20


def test_a_mask(site):
    image, labels = painted()
    reply = site.segment(as_file(image), "?size=native")
    assert reply.status == 200
    document = reply.json
    assert np.array_equal(labels_in(base64.b64decode(document["mask_png"])), labels)
    assert (document["height"], document["width"]) == labels.shape
    assert document["network_size"] == list(labels.shape)
    assert sum(each["pixels"] for each in document["classes"]) == labels.size
    largest = document["classes"][0]
    assert largest["name"] == CAMVID.classes[largest["index"]]
    assert {"queue", "decode", "network", "encode"} <= document["milliseconds"].keys()
    assert "network;dur=" in reply.headers["Server-Timing"]
    assert (document["network"], document["backend"], document["random_weights"]) == ("camvid", "auto", False)


def test_a_png_alone(site):
    image, labels = painted()
    reply = site.segment(as_file(image), "?size=native", Accept="image/png")
    assert reply.headers["Content-Type"] == "image/png"
    assert np.array_equal(labels_in(reply.body), labels)


def test_the_network_is_chosen_by_name(site):
    image, labels = painted(table=VOC)
    document = site.segment(as_file(image), "?size=native&network=voc").json
    assert np.array_equal(labels_in(base64.b64decode(document["mask_png"])), labels)
    assert document["random_weights"] is True


@pytest.mark.parametrize(("query", "seen"), [("", None), ("&backend=auto", None), ("&backend=reference", "reference")])
def test_the_backend_is_named_where_the_network_runs(site, query, seen):
    parts.BACKENDS_SEEN.clear()
    assert site.segment(as_file(painted()[0]), f"?size=native{query}").json["backend"] == (seen or "auto")
    assert [seen] == parts.BACKENDS_SEEN


def test_the_backend_of_the_environment_is_the_default(monkeypatch, known_engines):
    monkeypatch.setenv("HYPERSEG_BACKEND", "reference")
    with parts.serving() as running:
        assert "reference" in running.worker.backends
        assert running.ask("/api/networks").json["default"]["backend"] == "reference"
        assert running.segment(as_file(painted()[0])).json["backend"] == "reference"


@pytest.mark.parametrize(
    ("size", "ran_at"),
    [("fit", [224, 64]), ("model", [96, 128]), ("native", [300, 70]), ("64x100", [64, 100]), ("", [224, 64])],
)
def test_sizes(site, size, ran_at):
    document = site.segment(as_file(painted(300, 70)[0]), f"?size={size}" if size else "").json
    assert document["network_size"] == ran_at
    assert (document["height"], document["width"]) == (300, 70)


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "AVIF", "GIF"])
def test_other_kinds_of_images(site, form):
    image = np.full((80, 70, 3), CAMVID.colors[3], np.uint8)
    kind = {"Content_Type": f"image/{form.lower()}"}
    reply = site.segment(as_file(image, form, quality=95), "?size=native", **kind)
    assert reply.status == 200
    assert reply.json["classes"][0]["name"] == CAMVID.classes[3]


def test_images_are_turned_upright(site):
    image, _ = painted(90, 120)
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    document = site.segment(as_file(image, "JPEG", exif=exif), Content_Type="image/jpeg").json
    assert (document["height"], document["width"]) == (120, 90)


def test_requests_share_a_connection(site):
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=30)
    for _ in range(3):
        connection.request("POST", "/api/segment", as_file(painted()[0]), {"Content-Type": "image/png"})
        assert connection.getresponse().read()
        local = connection.sock.getsockname()
    assert connection.sock.getsockname() == local
    connection.close()


def test_a_true_network_gives_the_labels_of_the_predictor(true_network):
    """Without a stand-in: the labels of `hyperseg predict`, on each backend of this machine."""
    import asyncio

    from hyperseg.predict import Predictor
    from hyperseg.serve import Network, Worker
    from hyperseg.serve.requests import Query

    image = np.random.default_rng(0).integers(0, 256, (72, 96, 3), np.uint8)
    worker = Worker([Network("own", true_network.model)])
    expected = Predictor(true_network.model, (64, 96))(image)
    for backend in worker.backends:
        result = asyncio.run(worker.segment(Query("own", backend, (64, 96)), as_file(image)))
        different = labels_in(result.png) != expected
        assert different.mean() < 0.01, backend
    worker.close()
