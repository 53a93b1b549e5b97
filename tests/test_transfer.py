"""Transfers over HTTP: continued, and complete or not there; from a server on this machine."""

import errno
import os
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hyperseg import _transfer
from hyperseg._transfer import Progress, TransferError, fetch
from tests.server import Page, Server

DATA = np.random.default_rng(0).bytes(700_000)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(_transfer, "_BLOCK", 50_000)
    monkeypatch.setattr(_transfer, "_INTERVAL", 0.0)


def get(server: Server, folder: Path, page: Page, **options: object) -> Path:
    server.pages["/file"] = page
    return fetch(f"{server.url}/file", folder / "file", pause=0.0, **options)


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_with_progress(server, tmp_path):
    states: list[Progress] = []
    path = get(server, tmp_path, Page(DATA), on_progress=states.append)
    assert path.read_bytes() == DATA
    assert left(tmp_path) == ["file"]
    assert [state.done for state in states] == sorted(state.done for state in states)
    assert states[-1] == Progress("file", len(DATA), len(DATA))
    assert len(states) > 5
    get(server, tmp_path, Page(DATA))  # complete: no request
    assert len(server.requests) == 1


def test_cut_connections_are_continued(server, tmp_path):
    path = get(server, tmp_path, Page(DATA, cuts=[200_000, 100_000, None]))
    assert path.read_bytes() == DATA
    assert server.ranges() == [None, "bytes=200000-", "bytes=300000-"]
    assert left(tmp_path) == ["file"]


def test_a_later_call_continues(server, tmp_path):
    page = Page(DATA, cuts=[200_000, 0, 0])
    with pytest.raises(TransferError, match=r"cut after 200000 of 700000 bytes; 200000 bytes are kept in .*call again"):
        get(server, tmp_path, page, attempts=2)
    assert left(tmp_path) == ["file.part", "file.part.json"]
    assert get(server, tmp_path, page).read_bytes() == DATA
    assert server.ranges()[-1] == "bytes=200000-"


def test_an_interruption_keeps_what_came(server, tmp_path):
    def interrupt(progress: Progress) -> None:
        if progress.done >= 300_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get(server, tmp_path, Page(DATA), on_progress=interrupt)
    assert get(server, tmp_path, Page(DATA)).read_bytes() == DATA
    assert server.ranges()[-1] == "bytes=300000-"


def test_a_file_that_changed_meanwhile_is_fetched_anew(server, tmp_path):
    with pytest.raises(TransferError):
        get(server, tmp_path, Page(DATA, cuts=[200_000, 0]), attempts=1)
    assert get(server, tmp_path, Page(DATA[::-1], tag='"2"')).read_bytes() == DATA[::-1]


def test_a_part_of_another_address_is_not_continued(server, tmp_path):
    with pytest.raises(TransferError):
        get(server, tmp_path, Page(DATA, cuts=[200_000]), attempts=1)
    server.pages["/mirror"] = Page(DATA[::-1])
    assert fetch(f"{server.url}/mirror", tmp_path / "file").read_bytes() == DATA[::-1]


def test_a_part_that_is_complete(server, tmp_path):
    with pytest.raises(TransferError):
        get(server, tmp_path, Page(DATA, cuts=[200_000]), attempts=1)
    (tmp_path / "file.part").write_bytes(DATA)
    assert get(server, tmp_path, Page(DATA)).read_bytes() == DATA


@pytest.mark.parametrize("change", [{"ranges": False}, {"tag": None}, {"tag": 'W/"1"'}])
def test_servers_that_cannot_continue(server, tmp_path, change):
    assert get(server, tmp_path, replace(Page(DATA, cuts=[200_000, None]), **change)).read_bytes() == DATA
    (tmp_path / "file").unlink()
    with pytest.raises(TransferError, match="the server cannot continue a transfer"):
        get(server, tmp_path, replace(Page(DATA, cuts=[300_000, 200_000, 200_000]), **change), attempts=2)


def test_without_a_length(server, tmp_path):
    states: list[Progress] = []
    page = Page(DATA, chunked=True, cuts=[200_000, None])
    assert get(server, tmp_path, page, on_progress=states.append).read_bytes() == DATA
    assert states[-1].total is None


def test_redirects(server, tmp_path):
    server.pages["/start"] = Page(location="/file")
    server.pages["/file"] = Page(DATA, cuts=[200_000, None])
    assert fetch(f"{server.url}/start", tmp_path / "file", pause=0.0).read_bytes() == DATA
    assert ("/file", "bytes=200000-") in [(path, headers.get("Range")) for path, headers in server.requests]


def test_a_busy_server_is_asked_again(server, tmp_path):
    assert get(server, tmp_path, Page(DATA, failures=[503, 500])).read_bytes() == DATA
    (tmp_path / "file").unlink()
    with pytest.raises(TransferError, match="the server reported 503"):
        get(server, tmp_path, Page(status=503), attempts=2)


@pytest.mark.parametrize(
    ("status", "message"),
    [(404, "is not there .404 .*mirror"), (403, "may need a login: download it with a browser"), (418, "reported 418")],
)
def test_refusals(server, tmp_path, status, message):
    with pytest.raises(TransferError, match=message) as error:
        get(server, tmp_path, Page(status=status))
    assert f"{server.url}/file" in str(error.value)
    assert len(server.requests) == 1
    assert left(tmp_path) == []


def test_a_silent_server(server, tmp_path):
    with pytest.raises(TransferError, match="sent nothing for too long"):
        get(server, tmp_path, Page(DATA, pause=1.0), timeout=0.05, attempts=1)


def test_no_server_and_no_network(tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(TransferError, match=r"could not be downloaded: .*refused"):
        fetch(f"http://127.0.0.1:{port}/file", tmp_path / "file")

    def no_network(*args: object, **options: object) -> None:
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    with pytest.raises(TransferError, match="name could not be resolved; is there a network"):
        fetch("http://nowhere.invalid/file", tmp_path / "file")
    with pytest.raises(TransferError, match="is no address of a file"):
        fetch("file:///etc/passwd", tmp_path / "file")


def test_a_disk_that_is_full(server, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(TransferError, match=r"the disk is full: .*file cannot be written .*make space and call again"):
        get(server, tmp_path, Page(DATA))


def test_a_disk_that_fills_up(server, tmp_path, monkeypatch):
    def full(progress: Progress) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(TransferError, match="the disk is full"):
        get(server, tmp_path, Page(DATA), on_progress=full)
    assert get(server, tmp_path, Page(DATA)).read_bytes() == DATA
    assert server.ranges()[-1] == "bytes=50000-"
