"""``hyperseg.load`` reads either format, and the contents decide which."""

import os

import pytest
import torch

import hyperseg
from hyperseg.models import CheckpointError, checkpoint, save_official
from tests.models import checkpoints
from tests.models.networks import network

S = "hyperseg-s-camvid"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """One network in both formats: a folder of ours and an official file."""
    folder = tmp_path_factory.mktemp("saved")
    hyperseg.save(network(S), folder / "own")
    save_official(network(S), folder / "official.pth")
    return folder


@pytest.mark.parametrize("name", [None, S])
@pytest.mark.parametrize("file", ["own", "own/model.safetensors", "official.pth"])
def test_load(saved, file, name):
    model = hyperseg.load(str(saved / file), torch.device("cpu"), name)
    assert not model.training
    assert model.config == network(S).config
    found = model.state_dict()
    assert all(torch.equal(found[key], value) for key, value in network(S).state_dict().items())


@pytest.mark.parametrize("file", ["own", "official.pth"])
def test_load_to_a_device(saved, file):
    assert next(hyperseg.load(saved / file, device="meta").parameters()).device.type == "meta"


def test_the_contents_decide(saved, tmp_path):
    """Each format is recognised under the other's suffix, and under none."""
    for name in ("own.pth", "weights"):
        os.link(saved / "own" / "model.safetensors", tmp_path / name)
        assert hyperseg.load(tmp_path / name).config.name == S
    for name in ("official.bin", "official"):
        os.link(saved / "official.pth", tmp_path / name)
        assert hyperseg.load(tmp_path / name).config.name == S


def test_which_reader_gets_a_file(tmp_path, monkeypatch):
    """A folder, a .safetensors and a file with safetensors contents are our own; everything else is official."""
    loaded = []
    model = network("hyperseg-m-cityscapes")
    monkeypatch.setattr(checkpoint, "load_own_format", lambda path, *_: loaded.append(("own", path.name)) or model)
    monkeypatch.setattr(
        checkpoint, "load_official", lambda path, name, *_: loaded.append(("official", path.name, name)) or model
    )
    (tmp_path / "renamed.bin").write_bytes((64).to_bytes(8, "little") + b'{"__metadata__":{}}')
    (tmp_path / "a.safetensors").write_bytes(b"")
    (tmp_path / "official.pth").write_bytes(b"PK\3\4..........")
    (tmp_path / "mine").mkdir()
    for name in ("renamed.bin", "a.safetensors", "mine", "official.pth"):
        hyperseg.load(tmp_path / name)
    hyperseg.load(tmp_path / "official.pth", name="hyperseg-m")
    assert loaded == [
        ("own", "renamed.bin"),
        ("own", "a.safetensors"),
        ("own", "mine"),
        ("official", "official.pth", None),
        ("official", "official.pth", "hyperseg-m-cityscapes"),
    ]


def test_a_state_dict_without_arch_needs_the_name(tmp_path):
    path = checkpoints.write(tmp_path / "model.pth", checkpoints.weights())
    with pytest.raises(CheckpointError, match=r"model\.pth does not say which network it is .* give its name"):
        hyperseg.load(path)
    assert hyperseg.load(path, name=S).config.name == S


@pytest.mark.parametrize(
    ("name", "match"),
    [("hyperseg-m", "own contains hyperseg-s-camvid, not hyperseg-m-cityscapes"), ("unet", "There is no network")],
)
def test_another_name(saved, name, match):
    with pytest.raises(ValueError, match=match):
        hyperseg.load(saved / "own", name=name)


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors", "x"])
def test_missing_files(tmp_path, name):
    with pytest.raises(
        CheckpointError, match=rf"{name} does not exist; a checkpoint is a directory .* or a \.pth file"
    ):
        hyperseg.load(tmp_path / name)


@pytest.mark.parametrize("data", [b"", b"x", b"12345678", b"12345678x"])
def test_files_in_neither_format(tmp_path, data):
    path = tmp_path / "x.pth"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"x\.pth .*is damaged or not a PyTorch checkpoint"):
        hyperseg.load(path)


@pytest.mark.parametrize("load", [hyperseg.load, hyperseg.load_official])
def test_a_file_that_cannot_be_opened(tmp_path, monkeypatch, load):
    path = tmp_path / "x.pth"
    path.touch()

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(CheckpointError, match=r"x\.pth cannot be read: Permission denied"):
        load(path)


@pytest.mark.parametrize(
    "use",
    [
        hyperseg.load,
        hyperseg.load_official,
        lambda path: hyperseg.save(network(S), path),
        lambda path: save_official(network(S), path),
    ],
    ids=["load", "load_official", "save", "save_official"],
)
def test_an_empty_path_is_not_the_current_folder(use, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="path of the checkpoint is empty; is it a variable that is not set"):
        use("")
    assert list(tmp_path.iterdir()) == []
