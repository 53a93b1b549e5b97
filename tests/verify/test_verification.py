"""Which kernels are verified, and when; without child processes."""

import contextlib
import threading
import time

import pytest
import torch

from hyperseg.ops import BACKENDS, OPERATORS, use_backend
from hyperseg.ops.backends import Backend, dispatch, verdicts
from hyperseg.ops.backends.verdicts import RIGHT, UNKNOWN, WRONG, KernelWarning, Verdict
from hyperseg.verify import verification, verify_again, verify_kernels
from hyperseg.verify.processes import Item

CPU = torch.device("cpu")


@pytest.fixture
def verified(monkeypatch):
    """Two backends for the CPU, and an instant verification; ``outcomes`` sets what it finds, by backend."""
    calls: list[list[Item]] = []

    def verify(items, device, seconds):
        calls.append(list(items))
        found = [item.verdict(verify.outcomes.get(item.backend, RIGHT), "case a: zeros") for item in items]
        return found, None if seconds is None else seconds - 1

    verify.outcomes, verify.calls = {}, calls
    for name in ("fast", "slow"):
        monkeypatch.setitem(BACKENDS, name, Backend(name, "", dict.fromkeys(OPERATORS, print)))
    monkeypatch.setitem(dispatch.PREFERENCE, "cpu", ("fast", "slow", "reference"))
    monkeypatch.setattr(verification, "verify", verify)
    return verify


def test_first_choices_in_every_dtype_once(verified):
    found = verify_kernels(CPU, (torch.float16,))
    assert {v.key for v in found} == {(o, "fast", d) for o in OPERATORS for d in ("float32", "float16", "bfloat16")}
    assert verify_kernels(CPU) == []
    verification._done.clear()
    assert len(verify_kernels(CPU)) == len(found)
    assert len(verified.calls) == 1


def test_the_second_choice_where_the_first_is_not_right(verified):
    verified.outcomes["fast"] = WRONG
    with pytest.warns(KernelWarning):
        verify_kernels(CPU)
    assert [{item.backend for item in items} for items in verified.calls] == [{"fast"}, {"slow"}]
    verification._done.clear()
    verify_kernels(CPU)
    assert len(verified.calls) == 2, "both are stored"


def test_what_is_unknown_is_verified_by_the_next_process(verified):
    verified.outcomes["fast"] = UNKNOWN
    with pytest.warns(KernelWarning):
        verify_kernels(CPU)
    verified.outcomes.clear()
    verification._done.clear()
    verify_kernels(CPU)
    assert {item.backend for item in verified.calls[-1]} == {"fast"}
    assert dispatch.chosen("stem", "cpu")[0] == "fast"


def test_operators_of_an_engine_first(monkeypatch, verified):
    """On a GPU only what runs is verified: the engine's operators in its dtype, and the others for training."""
    gpu = torch.device("cuda", 0)
    monkeypatch.setitem(dispatch.PREFERENCE, "cuda", ("fast", "reference"))
    monkeypatch.setattr(dispatch, "EXCEPTIONS", {})
    monkeypatch.setattr(verdicts, "fingerprint", lambda device: {"device": device.type})
    verify_kernels(gpu, (torch.float16,))
    assert verified.calls[0] == [Item(operator, "fast", "float16") for operator in verification.ENGINE]
    verify_kernels(gpu, (torch.float16,), training=True)
    assert {item.operator for item in verified.calls[1]} == set(OPERATORS) - set(verification.ENGINE)
    verify_kernels(gpu, (torch.bfloat16,))
    assert {item.dtype for item in verified.calls[2]} == {"bfloat16"}


def test_a_named_backend_needs_no_verification(verified):
    with use_backend("reference"):
        assert verify_kernels(CPU) == []
    assert verified.calls == []
    assert verify_kernels(CPU)


def test_another_process_verifies_at_the_same_time(monkeypatch, verified):
    """The ranks of a training run start at once: one verifies, the others wait for it and read its verdicts."""

    @contextlib.contextmanager
    def after_the_other(device):
        found = [Verdict(o, "fast", d, RIGHT) for o in OPERATORS for d in ("float32", "float16", "bfloat16")]
        verdicts.store(found, device)
        yield

    monkeypatch.setattr(verification, "_lock", after_the_other)
    assert len(verify_kernels(CPU)) == 3 * len(OPERATORS)
    assert verified.calls == []


def test_threads_verify_once(monkeypatch, verified):
    instant = verification.verify

    def slow(*args):
        time.sleep(0.2)
        return instant(*args)

    monkeypatch.setattr(verification, "verify", slow)
    threads = [threading.Thread(target=verify_kernels, args=(CPU,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(verified.calls) == 1


def test_an_interrupted_verification_is_repeated(monkeypatch, verified):
    def interrupt(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(verification, "verify", interrupt)
        with pytest.raises(KeyboardInterrupt):
            verify_kernels(CPU)
    assert verify_kernels(CPU)


def test_again_ignores_what_is_stored(verified):
    verified.outcomes["fast"] = WRONG
    with pytest.warns(KernelWarning):
        verify_kernels(CPU)
    verified.outcomes.clear()
    assert {v.backend for v in verify_again(CPU)} == {"fast"}
    assert dispatch.chosen("stem", "cpu")[0] == "fast"


def test_a_device_without_kernels(verified):
    assert verify_kernels(torch.device("meta")) == []
    assert verified.calls == []
