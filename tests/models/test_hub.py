"""Networks by the name of their repository, hf-hub:OWNER/NAME, from a server on this machine in place of the Hub."""

import builtins
import errno
import json
import socket
import time
import urllib.request
from pathlib import Path

import pytest
import torch
from safetensors.torch import save as serialise

import hyperseg
from hyperseg.models import CheckpointError
from hyperseg.models.hub import HubName, hub_name
from hyperseg.models.storage import read_safetensors
from tests import golden

NAME = "hf-hub:me/camvid"


@pytest.fixture(autouse=True)
def offline():
    """Instead of the fixture of this folder: these tests reach for a server on this machine."""


@pytest.fixture(scope="module")
def model():
    return golden.golden_model("hyperseg-s-camvid").eval()


@pytest.fixture(scope="module")
def files(model):
    """Two files, by name: the network's configuration, and weights that are enough for `quick`."""
    config = json.dumps(model.config.to_dict()).encode()
    return {"config.json": config, "model.safetensors": serialise({"a": torch.arange(1000.0)})}


@pytest.fixture
def quick(monkeypatch):
    """Have files read but no network built; returns the folders that were loaded."""
    loaded = []

    def load_own_format(path, device, check_finite):
        read_safetensors(path / "model.safetensors")
        loaded.append(path)
        return f"network of {path.name}"

    monkeypatch.setattr("hyperseg.models.storage.load_own_format", load_own_format)
    monkeypatch.setattr("hyperseg.models.checkpoint._expect", lambda expected, model, source: model)
    return loaded


def fails(message: str, name: str = NAME) -> str:
    with pytest.raises(CheckpointError, match=message) as error:
        hyperseg.load(name)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_true_network(hub, model, tmp_path):
    folder = hyperseg.save(model, tmp_path / "own")
    hub.create("me/camvid", {path.name: path.read_bytes() for path in folder.iterdir()})
    found = hyperseg.load(Path(NAME), name="hyperseg-s-camvid")
    assert not found.training
    assert found.config == model.config
    ours = model.state_dict()
    assert all(torch.equal(value, ours[key]) for key, value in found.state_dict().items())
    with pytest.raises(CheckpointError, match="hf-hub:me/camvid contains hyperseg-s-camvid, not hyperseg-l-voc"):
        hyperseg.load(NAME, name="hyperseg-l")


def test_one_download(hub, files, quick, tmp_path):
    commit = hub.create("me/camvid", files).refs["main"]
    assert hyperseg.load(NAME) == f"network of {commit}"
    count = len(hub.requests)
    hyperseg.load(NAME)
    assert hub.requests[count:] == ["HEAD /me/camvid/resolve/main/config.json"]  # is there anything new?
    assert {path.name for path in quick[0].iterdir()} == {"config.json", "model.safetensors"}
    assert quick[0].is_relative_to(tmp_path / "huggingface")


def test_both_files_are_of_one_commit(hub, files, quick):
    repository = hub.create("me/camvid", files)
    first = repository.refs["main"]
    hyperseg.load(NAME)
    second = repository.commit({"model.safetensors": files["model.safetensors"], "new": b""})
    assert hyperseg.load(NAME) == f"network of {second}"
    assert hyperseg.load(f"{NAME}@{first}") == f"network of {first}"
    repository.refs["v1.0"] = first
    assert hyperseg.load(f"{NAME}@v1.0") == f"network of {first}"
    fails(r"hf-hub:me/camvid@v2 has no revision v2; give one of its branches, tags or commits", f"{NAME}@v2")


def test_offline(hub, files, quick, monkeypatch, tmp_path):
    hub.create("me/camvid", files)
    monkeypatch.setenv("HYPERSEG_OFFLINE", "1")
    message = fails(
        r"is not in the cache .* downloads are turned off \(--offline, HYPERSEG_OFFLINE or HF_HUB_OFFLINE\)"
    )
    assert str(tmp_path / "huggingface") in message
    assert hub.requests == []
    monkeypatch.delenv("HYPERSEG_OFFLINE")
    hyperseg.load(NAME)
    count = len(hub.requests)
    monkeypatch.setenv("HYPERSEG_OFFLINE", "1")
    hyperseg.load(NAME)
    monkeypatch.delenv("HYPERSEG_OFFLINE")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hyperseg.load(NAME)
    fails("is not in the cache .* turned off", "hf-hub:me/other")
    assert len(hub.requests) == count


def test_no_network(hub, files, quick, monkeypatch):
    hub.create("me/camvid", files)
    hyperseg.load(NAME)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}")
    hyperseg.load(NAME)  # the newest that the cache has
    fails(
        r"is not in the cache, and http.* could not be reached \(.*refused.*\); is there a network", "hf-hub:me/other"
    )


def test_a_server_without_an_address(hub, files, quick, monkeypatch, capsys):
    """It is not asked again and again, which takes a minute and prints twenty lines."""
    hub.create("me/camvid", files)
    hyperseg.load(NAME)
    count = len(hub.requests)

    def fail(*_):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    begin = time.monotonic()
    hyperseg.load(NAME)
    fails("is not in the cache, and .* could not be found .Name or service not known.; is there a", "hf-hub:me/other")
    assert time.monotonic() - begin < 5
    assert len(hub.requests) == count
    assert capsys.readouterr().err == ""


def test_a_repository_that_does_not_exist(hub, monkeypatch):
    fails(rf"hf-hub:me/camvid does not exist at {hub.url}, or it is private: check the name, or log in \(hf auth login")
    monkeypatch.setenv("HF_TOKEN", "hf_me")
    fails(r"does not exist .* or its owner has not given this account access")


def test_private_and_gated_repositories(hub, files, quick, monkeypatch):
    hub.create("me/camvid", files, private=True)
    hub.create("me/gated", files, gated=True)
    fails("does not exist .* or it is private")
    fails(f"is gated: .*Ask for access at {hub.url}/me/gated, then log in", "hf-hub:me/gated")
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    fails("its owner has not given this account access")
    assert "log in" not in fails("is gated", "hf-hub:me/gated")
    monkeypatch.setenv("HF_TOKEN", "hf_me")
    hyperseg.load(NAME)
    hyperseg.load("hf-hub:me/gated")
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    fails(r"may not be used with this login \(401: Invalid credentials.*\); log in .* again", "hf-hub:me/new")


def test_repositories_of_something_else(hub, files, monkeypatch):
    other = json.dumps({"architecture": "resnet50", "num_classes": 1000}).encode()
    hub.create("me/camvid", {"model.safetensors": files["model.safetensors"]})
    fails(
        r"is no HyperSeg network: a file is missing\. Expected are config.json and model.safetensors, as hyperseg.save"
    )
    hub.create("me/weightless", {"config.json": files["config.json"]})
    fails(r"is no HyperSeg network: a file is missing", "hf-hub:me/weightless")
    for config in (other, b"[]", b"\xff"):
        hub.create("timm/resnet", {"config.json": config, "model.safetensors": b"x" * 1000})
        fails(r"is no HyperSeg network: its config.json is of something else.* Expected are", "hf-hub:timm/resnet")
    assert "GET /timm/resnet/resolve/main/model.safetensors" not in hub.requests


def test_a_damaged_file(hub, files):
    hub.create("me/camvid", {**files, "model.safetensors": files["model.safetensors"][:1000]})
    fails(r"hf-hub:me/camvid cannot be loaded: .*model.safetensors is not a readable safetensors file")


def test_a_file_that_is_too_large(hub, files):
    hub.create("me/camvid", files)
    hub.sizes["model.safetensors"] = 3 * 10**9
    fails(r"is not downloaded: its model.safetensors has 3.0 GB, and networks have less than 2 GB")


def test_a_server_in_trouble(hub, files):
    hub.create("me/camvid", files)
    hub.failures["resolve"] = (503, "Maintenance")
    fails(rf"cannot be used now: {hub.url} reported 503 \(Maintenance\); try again later")
    hub.failures["resolve"] = (403, "Not for this token")
    fails(r"may not be used in this way \(403: Not for this token\)")


def test_a_cache_that_cannot_be_written(hub, files, monkeypatch):
    hub.create("me/camvid", files)

    def full(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device", "/cache/blob")

    monkeypatch.setattr("huggingface_hub.file_download._download_to_tmp_and_move", full)
    fails(r"cannot be kept: /cache/blob cannot be written \(No space left on device\); HF_HOME can name another folder")


def test_without_huggingface_hub(monkeypatch):
    original = builtins.__import__

    def missing(name, *args, **options):
        if name == "huggingface_hub":
            raise ImportError("No module named 'huggingface_hub'")
        return original(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    fails(r"hf-hub:me/camvid needs the package huggingface_hub, .*: pip install huggingface_hub")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("hf-hub:camvid", "it has no OWNER/"),
        ("hf-hub:", "'' cannot be a repository"),
        ("hf-hub:me/", "'me/' cannot be a repository"),
        ("hf-hub:me/my/network", "'me/my/network' cannot be a repository"),
        ("hf-hub:me/a--b", "'me/a--b' cannot be a repository"),
        ("hf-hub:me/a..b", "cannot be a repository"),
        ("hf-hub:me/.hidden", "cannot be a repository"),
        ("hf-hub:me/a.git", "cannot be a repository"),
        ("hf-hub:me/a b", "'me/a b' cannot be a repository"),
        ("hf-hub:me/a@", "'' cannot be a revision; give a branch, a tag or a commit after the @"),
        ("hf-hub:me/a@../../x", "'../../x' cannot be a revision"),
        ("hf-hub:me/a@/etc", "'/etc' cannot be a revision"),
    ],
)
def test_names_that_are_not_valid(name, reason):
    with pytest.raises(CheckpointError, match=rf"{name} is not understood: .*{reason}"):
        hub_name(name)


def test_names():
    assert hub_name("hf-hub:me/a_b.c-1") == HubName("me/a_b.c-1")
    assert hub_name("hf-hub:me/a@refs/pr/1") == HubName("me/a", "refs/pr/1")
    assert str(hub_name("hf-hub:me/a@v1")) == "hf-hub:me/a@v1"
