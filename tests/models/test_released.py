"""Released weights by name: downloaded once, continued, recorded and checked; from a server on this machine."""

import functools
import hashlib
import json
import logging
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import hyperseg
from hyperseg import _transfer
from hyperseg.models import PUBLISHED, VARIANTS, CheckpointError, released
from hyperseg.models.pickles import read_pickle
from tests import golden
from tests.server import Page

NAME = "hyperseg-m-cityscapes"
FILE = "cityscapes_efficientnet_b1_hyperseg-m.pth"


@pytest.fixture(autouse=True)
def offline():
    """Instead of the fixture of this folder: these tests reach for a server on this machine."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The bytes of a small file of PyTorch."""
    path = tmp_path_factory.mktemp("released") / FILE
    torch.save({"state_dict": {"a": torch.from_numpy(np.arange(50_000, dtype=np.float32))}, "arch": "?"}, path)
    return path.read_bytes()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of the weights, which does not exist yet."""
    monkeypatch.setenv("HYPERSEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HYPERSEG_OFFLINE", raising=False)
    return tmp_path / "cache" / "weights"


@pytest.fixture
def server(server, monkeypatch):
    monkeypatch.setattr(_transfer, "_BLOCK", 20_000)
    monkeypatch.setattr(released, "fetch", functools.partial(_transfer.fetch, pause=0.0, attempts=2, timeout=0.2))
    monkeypatch.setenv("HYPERSEG_MIRROR", f"{server.url}/mirror/")
    return server


@pytest.fixture
def quick(monkeypatch):
    """Have files read but no network built; returns what was loaded."""
    loaded = []

    def load_official(path, name, device, check_finite):
        read_pickle(path)
        loaded.append((Path(path).name, name, device, check_finite))
        return f"network {name}"

    monkeypatch.setattr("hyperseg.models.official.load_official", load_official)
    return loaded


def put(server, data: bytes, **options) -> None:
    server.pages[f"/mirror/{FILE}"] = Page(data, **options)


def record(cache: Path) -> dict:
    return json.loads((cache / "downloads.json").read_text())[FILE]


def left(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir())


def test_a_true_network(server, cache, tmp_path):
    name, file = "hyperseg-s-camvid", "camvid_efficientnet_b1_hyperseg-s.pth"
    model = golden.golden_model(name).eval()
    hyperseg.save_official(model, tmp_path / "official.pth")
    server.pages[f"/mirror/{file}"] = Page((tmp_path / "official.pth").read_bytes())
    found = hyperseg.load(name)
    assert not found.training
    assert found.config == model.config
    ours = model.state_dict()
    assert all(torch.equal(value, ours[key]) for key, value in found.state_dict().items())


def test_one_download(server, cache, weights, quick):
    put(server, weights)
    assert hyperseg.load(NAME) == f"network {NAME}"
    assert hyperseg.load("hyperseg-m", device="meta", name=NAME, check_finite=False) == f"network {NAME}"
    assert len(server.requests) == 1
    assert quick == [(FILE, NAME, "cpu", True), (FILE, NAME, "meta", False)]
    assert left(cache) == [FILE, "downloads.json"]
    sha256 = hashlib.sha256(weights).hexdigest()
    assert record(cache) == {"url": f"{server.url}/mirror/{FILE}", "size": len(weights), "sha256": sha256}


def test_a_cut_download_continues(server, cache, weights, quick):
    put(server, weights, cuts=[60_000, 0, 0, None])
    with pytest.raises(CheckpointError, match=r"could not be obtained: .*60000 bytes are kept in .*call again to cont"):
        hyperseg.load(NAME)
    assert left(cache) == [f"{FILE}.part", f"{FILE}.part.json"]
    hyperseg.load(NAME)
    assert server.ranges()[-1] == "bytes=60000-"
    assert (cache / FILE).read_bytes() == weights
    assert left(cache) == [FILE, "downloads.json"]


def test_a_redirected_download(server, cache, weights, quick):
    server.pages[f"/mirror/{FILE}"] = Page(location="/elsewhere")
    server.pages["/elsewhere"] = Page(weights, cuts=[60_000, None])
    hyperseg.load(NAME)
    assert (cache / FILE).read_bytes() == weights


def test_a_slow_server(server, cache, weights, quick):
    put(server, weights, pause=0.5)
    with pytest.raises(CheckpointError, match="sent nothing for too long"):
        hyperseg.load(NAME)
    put(server, weights, pause=0.05)
    hyperseg.load(NAME)


def test_a_file_that_is_not_there(server, cache, quick):
    with pytest.raises(CheckpointError, match=r"404 .*HYPERSEG_MIRROR can name another address .*put it in") as error:
        hyperseg.load(NAME)
    assert f"https://github.com/YuvalNirkin/hyperseg/releases/download/v1.0/{FILE}" in str(error.value)
    assert left(cache) == []


@pytest.mark.parametrize(
    ("data", "reason"), [(b"<html>Log in</html>", "it is a web page"), (b"PK\3\4 damaged", "parts of it are missing")]
)
def test_wrong_bytes_are_deleted(server, cache, weights, quick, data, reason):
    put(server, data)
    with pytest.raises(CheckpointError, match=rf"is not the weights of {NAME}, and was deleted\. Try again") as error:
        hyperseg.load(NAME)
    assert reason in str(error.value)
    assert left(cache) == []
    put(server, weights)
    hyperseg.load(NAME)


def test_a_cached_file_that_changed(server, cache, weights, quick):
    put(server, weights)
    hyperseg.load(NAME)
    (cache / FILE).write_bytes(weights[:-1] + b"x")
    with pytest.raises(CheckpointError, match=r"has the SHA-256 .* it is damaged or was replaced\. Remove the file"):
        hyperseg.load(NAME)
    (cache / FILE).write_bytes(weights[:-1])
    with pytest.raises(CheckpointError, match=rf"has {len(weights) - 1} bytes, but {len(weights)} bytes when"):
        hyperseg.load(NAME)
    (cache / FILE).unlink()
    hyperseg.load(NAME)


def test_another_file_on_the_server_later(server, cache, weights, quick):
    put(server, weights)
    hyperseg.load(NAME)
    (cache / FILE).unlink()
    put(server, weights + b"x")
    with pytest.raises(CheckpointError, match=r"is not the one that was downloaded first .*it was deleted.*the entry"):
        hyperseg.load(NAME)
    assert left(cache) == ["downloads.json"]


def test_offline(server, cache, weights, quick, monkeypatch):
    monkeypatch.setenv("HYPERSEG_OFFLINE", "1")
    with pytest.raises(CheckpointError, match=r"not in the cache .*downloads are turned off .*HYPERSEG_OFFLINE"):
        hyperseg.load(NAME)
    assert server.requests == []
    monkeypatch.setenv("HYPERSEG_OFFLINE", "0")
    put(server, weights)
    hyperseg.load(NAME)
    monkeypatch.setenv("HYPERSEG_OFFLINE", "1")
    hyperseg.load(NAME)


def test_a_file_that_the_user_put_into_the_cache(cache, weights, quick, monkeypatch):
    monkeypatch.setenv("HYPERSEG_OFFLINE", "1")
    cache.mkdir(parents=True)
    (cache / FILE).write_bytes(b"<html>")
    with pytest.raises(CheckpointError, match=r"it is a web page.* Remove the file, and it is downloaded again"):
        hyperseg.load(NAME)
    assert left(cache) == [FILE]  # it is the user's
    (cache / FILE).write_bytes(weights)
    hyperseg.load(NAME)
    assert record(cache)["url"] == str(cache / FILE)


def test_two_at_the_same_time(server, cache, weights, quick, caplog):
    put(server, weights, pause=0.15)
    threads = [threading.Thread(target=hyperseg.load, args=(NAME,)) for _ in range(3)]
    with caplog.at_level(logging.WARNING, logger="hyperseg.models"):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(quick) == 3
    assert len(server.requests) == 1
    assert "waiting for another process that downloads to" in caplog.text


def test_a_process_that_downloads_for_too_long(server, cache, monkeypatch):
    monkeypatch.setattr(released, "_PATIENCE", 0.0)
    cache.mkdir(parents=True)
    with (
        released.file_lock(released.lock_path(cache), patience=0),
        pytest.raises(CheckpointError, match=r"another process downloads to .* for too long"),
    ):
        hyperseg.load(NAME)


def test_a_full_disk(server, cache, weights, quick, monkeypatch):
    usage = _transfer.shutil.disk_usage("/")
    monkeypatch.setattr(_transfer.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    put(server, weights)
    with pytest.raises(CheckpointError, match=r"the disk is full: .*make space and call again"):
        hyperseg.load(NAME)


def test_a_cache_that_cannot_be_made(server, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HYPERSEG_CACHE", str(tmp_path / "file"))
    with pytest.raises(CheckpointError, match=r"cannot be written .*HYPERSEG_CACHE can name another folder"):
        hyperseg.load(NAME)


def test_a_record_that_cannot_be_written(server, cache, weights, quick, monkeypatch, caplog):
    def refuse(*args: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(released, "write_record", refuse)
    put(server, weights)
    hyperseg.load(NAME)
    assert "cannot be recorded, so it is not checked later (Permission denied)" in caplog.text


def test_a_mirror_that_is_no_address(cache, monkeypatch):
    monkeypatch.setenv("HYPERSEG_MIRROR", "/mnt/weights")
    with pytest.raises(CheckpointError, match=r"/mnt/weights/.* is no address .*HYPERSEG_MIRROR"):
        hyperseg.load(NAME)


def test_progress_on_a_terminal(server, cache, weights, quick, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    put(server, weights)
    hyperseg.load(NAME)
    assert f"download {FILE}: 100%" in capsys.readouterr().err


def test_weights_that_were_not_released(cache):
    with pytest.raises(
        CheckpointError,
        match=r"no weights of hyperseg-l-camvid were ever released; train it "
        r"\(hyperseg train --recipe hyperseg-l-camvid\), or take hyperseg-s-camvid, which has the same classes",
    ):
        hyperseg.load("hyperseg-l-camvid")


@pytest.mark.parametrize(
    ("text", "closest"),
    [
        ("hyperseg-m-citysapes", NAME),
        ("hyperseg_m_cityscapes.pth", NAME),
        ("HyperSeg-S", "hyperseg-s"),
        ("hyperseg-l-vok", "hyperseg-l-voc"),
    ],
)
def test_names_that_do_not_exist(cache, text, closest):
    with pytest.raises(CheckpointError, match=rf"{text} does not exist; .* did you mean {closest}\?") as error:
        hyperseg.load(text)
    assert all(name in str(error.value) for name in released.released_names())


def test_another_name(cache):
    with pytest.raises(CheckpointError, match="hyperseg-m is the network hyperseg-m-cityscapes, not hyperseg-s-camvid"):
        hyperseg.load("hyperseg-m", name="hyperseg-s-camvid")


def test_a_file_of_that_name_comes_first(cache, weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(NAME).write_bytes(b"")
    with pytest.raises(CheckpointError, match=f"{NAME} is damaged or not a PyTorch checkpoint: it is empty"):
        hyperseg.load(NAME)


def test_the_released_files():
    """Four of the five networks have one (the table of the official README)."""
    files = [figures.weights for figures in PUBLISHED.values()]
    assert set(PUBLISHED) == set(VARIANTS)
    assert sorted(filter(None, files)) == [
        "camvid_efficientnet_b1_hyperseg-s.pth",
        "cityscapes_efficientnet_b1_hyperseg-m.pth",
        "cityscapes_efficientnet_b1_hyperseg-s.pth",
        "vocsbd_efficientnet_b3_hyperseg-l.pth",
    ]
    assert released.released_file("hyperseg-l-voc") == "vocsbd_efficientnet_b3_hyperseg-l.pth"
