"""Parameters that kernels may read early: the engine promises that its own are ready, nobody else's are."""

import threading

import pytest
import torch

from hyperseg import ops
from hyperseg.models import probe_frames
from hyperseg.ops.backends.native import constants_ready, extension
from hyperseg.runtime import build_engine
from tests.models.networks import network

module = extension()[0]
pytestmark = pytest.mark.skipif(module is None, reason="needs the extension hyperseg._C")


def are_ready() -> bool:
    found = module.set_constants_ready(False)
    module.set_constants_ready(found)
    return found


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    found, run = [], ops.decoder_level

    def record(*args, **kwargs):
        found.append(are_ready())
        return run(*args, **kwargs)

    monkeypatch.setattr(ops, "decoder_level", record)
    return found


def test_they_are_ready_inside_an_engine_only(monkeypatch):
    model, frames = network("hyperseg-s-camvid"), probe_frames(1, (64, 64))
    engine = build_engine(model, (64, 64), device="cpu", check=False)
    found = recorded(monkeypatch)
    engine(frames)
    assert set(found) == {True}
    assert not are_ready()
    found.clear()
    model(engine.normalise(frames))
    assert set(found) == {False}


def test_they_are_ready_in_one_thread_until_the_block_ends():
    seen = []

    def fail():
        with constants_ready():
            with constants_ready():
                pass
            seen.append(are_ready())
            thread = threading.Thread(target=lambda: seen.append(are_ready()))
            thread.start()
            thread.join()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [*seen, are_ready()] == [True, False, False]


def test_outputs_do_not_depend_on_it():
    frames = torch.randint(256, (1, 33, 70, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(16, 3, 3, 3, generator=torch.Generator().manual_seed(1)).half()
    args = frames, torch.rand(3), torch.rand(3), weight, weight[:, 0, 0, 0]  # the bias has strides and is copied
    expected = ops.stem(*args, stride=2)
    with constants_ready():
        assert torch.equal(ops.stem(*args, stride=2), expected)
