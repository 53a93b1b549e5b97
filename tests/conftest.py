import gc
import os
import sys
import time
from unittest.mock import Mock

import pytest
import torch

from tests.hub import serve_hub
from tests.server import serve

FAULT = 70  # exit code of a worker whose GPU context is lost

# Kernels are verified by the tests, not before them; tests/verify turns this on again, with a cache folder of its own.
os.environ["HYPERSEG_VERIFY"] = "0"


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Run PyTorch on one thread: the tests' maps are so small that more threads are slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def no_proxy(monkeypatch):
    """No proxy of the environment for a server on this machine."""
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")


@pytest.fixture
def server(no_proxy):
    """An HTTP server on this machine: tests/server.py."""
    with serve() as running:
        yield running


@pytest.fixture
def hub(no_proxy, tmp_path, monkeypatch):
    """A server on this machine in place of the Hugging Face Hub, with an empty cache; nobody is logged in."""
    import huggingface_hub
    from huggingface_hub import constants

    with serve_hub() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "huggingface"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", str(tmp_path / "agents.json"), raising=False)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.utils._http.time", Mock(wraps=time, sleep=lambda seconds: None))
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE", "HYPERSEG_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        huggingface_hub.close_session()  # one that reads the proxies anew is opened
        yield running
        huggingface_hub.close_session()


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Spare the garbage collector the millions of objects that imports and the list of tests leave: they all stay."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


def pytest_unconfigure():
    gc.unfreeze()  # extensions report what is left at the exit as leaked


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Leave the process after a kernel that faults, as every later call on the GPU would report the same error.

    pytest-xdist then names this test and runs the others in a new worker.
    """
    try:
        return (yield)
    finally:
        if item.get_closest_marker("gpu") and torch.cuda.is_available() and "PYTEST_XDIST_WORKER" in os.environ:
            try:
                torch.cuda.synchronize()
            except Exception as error:
                print(f"{item.nodeid}: {error}", file=sys.__stderr__, flush=True)
                os._exit(FAULT)
