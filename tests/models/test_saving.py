"""``save`` and ``save_official``: at any moment there is the old checkpoint or the new one, whatever fails."""

import copy
import functools
import os
import pkgutil
import shutil
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import hyperseg
from hyperseg.models import create_model, storage, synthesize_weights

S = "hyperseg-s-camvid"
NEW_CONFIG = {"mean": (0.5, 0.5, 0.5), "dataset": "mine"}


@functools.cache
def small(seed: int):
    """Two small networks of one structure, so that weights of one fit the configuration of the other."""
    config = NEW_CONFIG if seed else {}
    model = create_model("hyperseg-s", num_classes=2, encoder="mobilenetv3_small_100", **config)
    return synthesize_weights(model, seed).eval()


def is_same(model, other):
    pairs = zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    return model.config == other.config and all(torch.equal(a, b) for a, b in pairs)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class FailingCall:
    """Stands in for a function: its n-th call raises instead of running."""

    def __init__(self, function, n, error):
        self.function, self.left, self.error = function, n, error

    def __call__(self, *args, **kwargs):
        self.left -= 1
        if self.left == 0:
            raise self.error
        return self.function(*args, **kwargs)


# Every call of a save that can fail, in order; the number is how often it occurs.
STEPS = [
    ("pathlib.Path.mkdir", 2),
    ("hyperseg.models.storage.serialise", 1),
    ("pathlib.Path.write_bytes", 1),
    ("pathlib.Path.write_text", 1),
    ("os.chmod", 2),
    ("os.fsync", 2),
    ("os.replace", 2),
]
FAILURES = [(step, n) for step, count in STEPS for n in range(1, count + 1)]
ERRORS = [OSError(28, "No space left on device"), KeyboardInterrupt()]


def fail_at(monkeypatch, step, n, error):
    call = FailingCall(pkgutil.resolve_name(step), n, error)
    # A function, because an instance in the place of a method would not be given the path.
    monkeypatch.setattr(step, lambda *args, **kwargs: call(*args, **kwargs))


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(("step", "n"), FAILURES, ids=lambda value: str(value))
def test_a_failed_save_leaves_the_old_checkpoint(step, n, error, tmp_path, monkeypatch):
    folder = hyperseg.save(small(0), tmp_path / "network")
    before = contents(folder)
    fail_at(monkeypatch, step, n, error)
    with pytest.raises(type(error)):
        hyperseg.save(small(1), folder)
    assert contents(folder) == before


@pytest.mark.parametrize(("step", "n"), [failure for failure in FAILURES if failure[0] != "pathlib.Path.mkdir"])
def test_a_failed_first_save_leaves_nothing(step, n, tmp_path, monkeypatch):
    fail_at(monkeypatch, step, n, ERRORS[0])
    with pytest.raises(OSError, match="No space left"):
        hyperseg.save(small(1), tmp_path)
    assert contents(tmp_path) == {}


def test_a_file_system_without_hard_links(tmp_path, monkeypatch):
    folder = hyperseg.save(small(0), tmp_path)
    before = contents(folder)

    def refuse(*_, **__):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    fail_at(monkeypatch, "os.replace", 2, ERRORS[0])
    with pytest.raises(OSError, match="No space left"):
        hyperseg.save(small(1), folder)
    assert contents(folder) == before


def test_a_folder_in_the_place_of_a_file(tmp_path):
    (tmp_path / "config.json").mkdir()
    with pytest.raises(IsADirectoryError, match=r"config\.json is a folder, expected a file"):
        hyperseg.save(small(0), tmp_path)
    assert os.listdir(tmp_path) == ["config.json"]


def test_a_process_killed_between_the_two_files(tmp_path):
    """The new weights are there with the old config.json: together they are the new network."""
    before, after = hyperseg.save(small(0), tmp_path / "before"), hyperseg.save(small(1), tmp_path / "after")
    shutil.copy(after / "model.safetensors", before)
    with pytest.warns(UserWarning, match=r"config\.json has another dataset, mean; ignored"):
        assert is_same(hyperseg.load(before), small(1))


def test_a_reader_meanwhile(tmp_path, monkeypatch):
    """At every moment of a save, a reader gets the whole old network or the whole new one."""
    folder = hyperseg.save(small(0), tmp_path)
    replace, read = os.replace, []

    def look():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = hyperseg.load(folder)
        read.append(next(seed for seed in (0, 1) if is_same(model, small(seed))))

    def replace_and_look(*args):
        look()
        replace(*args)
        look()

    monkeypatch.setattr(os, "replace", replace_and_look)
    hyperseg.save(small(1), folder)
    assert read == [0, 1, 1, 1]


def test_a_reader_that_is_overtaken(tmp_path, monkeypatch):
    """The files are replaced while it reads them: after config.json, before the weights."""
    folder = hyperseg.save(small(0), tmp_path)
    reads = storage.read_safetensors

    def save_then_read(path):
        monkeypatch.setattr(storage, "read_safetensors", reads)
        hyperseg.save(small(1), folder)
        return reads(path)

    monkeypatch.setattr(storage, "read_safetensors", save_then_read)
    with pytest.warns(UserWarning, match="ignored"):
        assert is_same(hyperseg.load(folder), small(1))


@pytest.mark.parametrize("step", ["torch.save", "os.chmod", "os.fsync", "os.replace"])
def test_a_failed_official_save_leaves_the_old_file(step, tmp_path, monkeypatch):
    path = tmp_path / "model.pth"
    path.write_text("old")
    fail_at(monkeypatch, step, 1, ERRORS[0])
    with pytest.raises(OSError, match="No space left"):
        hyperseg.save_official(create_model(S), path)
    assert contents(tmp_path) == {"model.pth": b"old"}


def parametrized(model):
    parametrizations.weight_norm(model.context.reduce.conv)


def replaced(model):
    model.decoder.levels[0].norms[0] = nn.GroupNorm(1, 32)


def other_config(model):
    model.config = model.config.replace(num_classes=3)


@pytest.mark.parametrize("write", [hyperseg.save, hyperseg.save_official])
@pytest.mark.parametrize("change", [parametrized, replaced, other_config])
def test_what_could_not_be_loaded_is_not_saved(change, write, tmp_path):
    model = create_model(S)
    change(model)
    with pytest.raises(ValueError, match=r"(?s)does not fit the network.*changed after it was built.*torch\.save"):
        write(model, tmp_path / "network")
    assert contents(tmp_path) == {}


def test_a_network_without_values(tmp_path):
    with pytest.raises(ValueError, match="is on the meta device and has no values"):
        hyperseg.save(copy.deepcopy(small(0)).to("meta"), tmp_path)
    assert contents(tmp_path) == {}


def test_saving_does_not_change_the_random_state(tmp_path):
    state = torch.get_rng_state()
    hyperseg.save(small(0), tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
