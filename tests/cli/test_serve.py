"""hyperseg serve: what is checked before it starts, and that it starts with the network and limits that were given."""

import socket
from types import SimpleNamespace

import pytest

from hyperseg.cli import main
from hyperseg.cli.serve import _address, _is_local

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")


@pytest.fixture
def started(monkeypatch):
    """Do not start a server; return what would have been started."""
    calls = []

    def server(app, limits, proxy):
        def run(sockets):
            calls.append(SimpleNamespace(app=app, limits=limits, proxy=proxy, socket=sockets[0].getsockname()))
            raise KeyboardInterrupt

        return SimpleNamespace(run=run)

    monkeypatch.setattr("hyperseg.serve.run.server", server)
    return calls


def test_it_starts(started, stand_in, capsys):
    assert main(["serve", "--model", "hyperseg-s-camvid", "--port", "0", "--max-mib", "3", "--proxy"]) == 0
    (call,) = started
    host, port = call.socket
    output = capsys.readouterr()
    assert f"http://127.0.0.1:{port} (Ctrl-C ends it)" in output.out
    assert "hyperseg-s-camvid runs with random weights, so its labels mean nothing" in output.err
    assert "no passwords" not in output.err
    assert host == "127.0.0.1"
    assert call.limits.body_bytes == 3 * 2**20
    assert call.proxy
    assert stand_in == [(96, 128)]  # the engine is built before the first request


def test_others_are_let_in_with_a_warning(started, stand_in, capsys):
    assert main(["serve", "--model", "hyperseg-m", "--port", "0", "--host", "0.0.0.0"]) == 0
    output = capsys.readouterr()
    assert "there are no passwords and no encryption" in output.err
    assert "http://localhost:" in output.out


def test_several_networks(started, stand_in, capsys):
    assert (
        main(["serve", "--model", "hyperseg-s", "--model", "hyperseg-m", "--model", "hyperseg-m", "--port", "0"]) == 0
    )
    assert "hyperseg-m-cityscapes 2 runs with random weights" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "no network is given; add --weights FILE"),
        (["--weights", "nothing.pth"], 1, "there is no file or folder nothing.pth"),
        (["--model", "nothing"], 2, "--model: "),
        (["--weights", "a", "--model", "hyperseg-s", "--model", "hyperseg-m"], 2, "--model is given 2 times"),
        (["--model", "hyperseg-s", "--size", "big"], 2, "--size: size 'big' is not understood"),
        (["--model", "hyperseg-s", "--port", "99999"], 2, "'99999' is no port"),
        (["--model", "hyperseg-s", "--rate", "0"], 2, "'0' is no whole number from 1"),
        (["--model", "hyperseg-s", "--device", "tpu"], 2, "--device: "),
        (["--model", "hyperseg-s", "--host", "300.1.1.1"], 1, "cannot listen at 300.1.1.1 port 8000"),
    ],
)
def test_errors(started, capsys, folder, arguments, code, message):
    assert main(["serve", *arguments]) == code
    assert message in capsys.readouterr().err
    assert started == []


def test_a_port_that_is_taken(started, capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["serve", "--model", "hyperseg-s", "--port", str(port)]) == 1
    assert f"cannot listen at 127.0.0.1 port {port} (Address already in use); give another" in capsys.readouterr().err


def test_packages_that_are_missing(monkeypatch, capsys):
    monkeypatch.setattr("hyperseg.cli.serve.find_spec", lambda name: None if name == "uvicorn" else object())
    assert main(["serve", "--model", "hyperseg-s"]) == 1
    assert "uvicorn must be installed: pip install 'hyperseg[serve]'" in capsys.readouterr().err


def test_addresses():
    assert _address("::1", 80) == "http://[::1]:80"
    assert _address("0.0.0.0", 8000) == "http://localhost:8000"
    assert [host for host in ("localhost", "127.0.0.2", "::1", "0.0.0.0", "10.0.0.1") if _is_local(host)] == [
        "localhost",
        "127.0.0.2",
        "::1",
    ]
