"""Where a kernel raises an error in an engine, the next backend runs its operator, and the reason is known."""

import dataclasses
import logging

import pytest
import torch

from hyperseg import ops
from hyperseg.models import probe_frames
from hyperseg.ops.backends import BACKENDS, dispatch, verdicts
from hyperseg.ops.backends.verdicts import FAILED, RIGHT, Verdict
from hyperseg.runtime import EngineError, LostDeviceError, build_engine, fallback
from tests.models.networks import network

S = "hyperseg-s-camvid"
SIZE = (33, 57)
CPU = torch.device("cpu")
FAKE = "fake"


@pytest.fixture
def failing(monkeypatch, tmp_path):
    """A backend before all others on the CPU: the reference, except for operators given to the returned function."""
    monkeypatch.setenv("HYPERSEG_CACHE", str(tmp_path))
    supported = dict(BACKENDS["reference"].supported)
    monkeypatch.setitem(BACKENDS, FAKE, dataclasses.replace(BACKENDS["reference"], name=FAKE, supported=supported))
    monkeypatch.setitem(dispatch.PREFERENCE, "cpu", (FAKE, "reference"))
    tables = (verdicts.PASSED_OVER, verdicts._known, verdicts._warned)
    kept = [table.copy() for table in tables]
    verdicts._known.clear()
    verdicts.PASSED_OVER.clear()
    calls = []

    def fail(operator, error):
        def run(*args):
            calls.append(operator)
            raise error

        supported[operator] = run

    fail.calls = calls
    yield fail
    for table, before in zip(tables, kept, strict=True):
        table.clear()
        table.update(before)


ERROR = RuntimeError("out of resource: shared memory, Required: 245760, Hardware limit: 232448.\nReducing block sizes")


@pytest.mark.parametrize("check", [True, False])
def test_the_next_backend_runs_what_fails(check, failing, caplog):
    expected = build_engine(network(S), SIZE, device="cpu", check=False)(probe_frames(1, SIZE))
    failing("mbconv", ERROR)
    failing("decoder_level", ValueError(""))
    with caplog.at_level(logging.WARNING, "hyperseg.runtime"):
        engine = build_engine(network(S), SIZE, device="cpu", check=check)
        assert len(failing.calls) == (2 if check else 0)
        assert torch.equal(engine(probe_frames(1, SIZE)), expected)
    assert failing.calls == ["mbconv", "decoder_level"]
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith(
        "The fake kernel of mbconv of [1, 32, 16, 32] float32 on cpu failed and is not used in this process any more; "
        "the next backend runs this operator: RuntimeError: out of resource: shared memory"
    )
    assert "\n" not in first
    assert second.endswith(": ValueError")
    reason = "it failed in an engine of this process: RuntimeError: out of resource: shared memory, "
    assert ops.chosen("mbconv", "cpu")[1][FAKE][0].startswith(reason)
    calls = {call.operator: call for call in engine.explain(repeats=1).calls}
    assert (calls["mbconv"].backend, calls["stem"].backend) == ("reference", FAKE)
    assert calls["mbconv"].passed_over[FAKE][0].startswith(reason)
    assert calls["stem"].passed_over == {}
    assert f"* fake did not run mbconv: {reason}" in str(engine.explain(repeats=1))


def test_each_size_is_watched(failing):
    engine = build_engine(network(S), SIZE, device="cpu", check=False)
    engine(probe_frames(1, SIZE))
    failing("mbconv", ERROR)
    with pytest.raises(RuntimeError, match="out of resource"):
        engine(probe_frames(1, SIZE))  # only the first frame of a stage is watched
    other = engine.at((40, 64))
    assert other(probe_frames(1, (40, 64))).shape == (1, 40, 64)
    assert engine(probe_frames(1, SIZE)).shape == (1, *SIZE)


def test_a_backend_named_by_the_user_is_not_replaced(failing):
    failing("mbconv", ERROR)
    with ops.use_backend(FAKE), pytest.raises(RuntimeError, match="out of resource"):
        build_engine(network(S), SIZE, device="cpu")
    assert ops.chosen("mbconv", "cpu")[0] == FAKE


def test_a_frame_of_a_named_backend_is_not_the_first(failing):
    """As in a server, where each request may name one."""
    engine = build_engine(network(S), SIZE, device="cpu", check=False)
    with ops.use_backend("reference"):
        engine(probe_frames(1, SIZE))
    failing("mbconv", ERROR)
    assert engine(probe_frames(1, SIZE)).shape == (1, *SIZE)


def test_missing_memory_is_no_fault_of_a_kernel(failing):
    failing("mbconv", torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(torch.OutOfMemoryError):
        build_engine(network(S), SIZE, device="cpu")
    assert ops.chosen("mbconv", "cpu")[0] == FAKE


def test_the_reference_is_the_last(failing, monkeypatch):
    monkeypatch.setitem(dispatch.PREFERENCE, "cpu", ("reference",))

    def fails(*args):
        raise ERROR

    monkeypatch.setitem(BACKENDS["reference"].supported, "decoder_level", fails)
    with pytest.raises(RuntimeError, match="out of resource"):
        build_engine(network(S), SIZE, device="cpu")


def test_a_lost_device_is_an_error_and_the_next_process_passes_over_the_kernel(failing, monkeypatch):
    monkeypatch.setattr(fallback, "_is_lost", lambda device: True)
    monkeypatch.setenv("HYPERSEG_VERIFY", "1")
    monkeypatch.setattr("hyperseg.runtime.engine.verify_kernels", lambda *args: [])
    failing("mbconv", RuntimeError("CUDA error: an illegal memory access was encountered"))
    with pytest.raises(
        LostDeviceError, match=r"kernel of mbconv of .* failed, and nothing runs .*illegal.* start again"
    ):
        build_engine(network(S), SIZE, device="cpu")
    assert issubclass(LostDeviceError, EngineError)
    (stored,) = verdicts.load(CPU)
    assert (stored.kernel, stored.outcome) == (("mbconv", FAKE), "wrong")
    verdicts._known.clear()
    verdicts.PASSED_OVER.clear()
    verdicts._warned.clear()
    with pytest.warns(verdicts.KernelWarning, match="mbconv of fake: RuntimeError: CUDA error: an illegal"):
        build_engine(network(S), SIZE, device="cpu")
    assert ops.chosen("mbconv", "cpu")[0] == "reference"


@pytest.mark.parametrize("lost", [False, True])
def test_a_device_is_lost_if_it_cannot_be_synchronised(lost, monkeypatch):
    def synchronize(device):
        if lost:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    assert fallback._is_lost(torch.device("cuda", 0)) == lost
    assert not fallback._is_lost(CPU)


def test_without_verification_nothing_is_stored(failing, monkeypatch):
    monkeypatch.setattr(fallback, "_is_lost", lambda device: True)
    failing("mbconv", RuntimeError("CUDA error: an illegal memory access was encountered"))
    with pytest.raises(LostDeviceError, match="without HYPERSEG_VERIFY=0"):
        build_engine(network(S), SIZE, device="cpu")
    assert verdicts.load(CPU) == []


def test_a_kernel_that_failed_is_not_right_again(failing):
    """As when the verdicts of a second dtype are read from the cache."""
    verdicts.exclude(Verdict("mbconv", FAKE, "float32", FAILED, "RuntimeError"), CPU)
    verdicts.apply([Verdict("mbconv", FAKE, "float32", RIGHT)], CPU)
    assert ops.chosen("mbconv", "cpu") == (
        "reference",
        {FAKE: ["it failed in an engine of this process: RuntimeError (float32)"]},
    )
    verdicts.store([Verdict("mbconv", FAKE, "float32", FAILED, "RuntimeError")], CPU)
    assert verdicts.load(CPU) == []


def test_watched_operators():
    seen = []

    def call(operator, *args):
        seen.append(operator)
        ops.upsample_argmax(torch.zeros(1, 2, 1, 1), (1, 1))  # not watched itself
        return dispatch.decide(operator, args)[1](*args)

    logits = torch.rand(1, 2, 2, 2)
    with dispatch.watch(call):
        first = ops.upsample_argmax(logits, (4, 4))
        with dispatch.watch(lambda operator, *args: 1 / 0), pytest.raises(ZeroDivisionError):
            ops.upsample_argmax(logits, (4, 4))
        with pytest.raises(ValueError, match="upsample_argmax"):
            ops.upsample_argmax(logits[0], (4, 4))
        second = ops.upsample_argmax(logits, (4, 4))
    assert seen == ["upsample_argmax"] * 2
    assert torch.equal(first, second)
    assert torch.equal(ops.upsample_argmax(logits, (4, 4)), first)
    assert dispatch._watching == 0
