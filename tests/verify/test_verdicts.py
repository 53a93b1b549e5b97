"""Stored verdicts: what they depend on, what ``auto`` does with them, and files that cannot be read or written."""

import json
import os
import warnings

import pytest
import torch

from hyperseg import ops
from hyperseg.ops import BACKENDS, BackendError, chosen, has_kernel, use_backend
from hyperseg.ops.backends import Backend, dispatch, native, verdicts
from hyperseg.ops.backends.verdicts import RIGHT, UNKNOWN, WRONG, KernelWarning, Verdict

CPU = torch.device("cpu")
LOGITS = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1)


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    """A backend that auto prefers; its labels are 7, where the reference's is 1."""
    labels = {"upsample_argmax": lambda logits, h, w: torch.full((1, h, w), 7, dtype=torch.uint8)}
    monkeypatch.setitem(BACKENDS, "fast", Backend("fast", "", labels))
    monkeypatch.setitem(dispatch.PREFERENCE, "cpu", ("fast", "reference"))


def label() -> int:
    return int(ops.upsample_argmax(LOGITS, (1, 1)))


def verdict(outcome: str, dtype: str = "float32", reason: str = "case double: zeros") -> Verdict:
    return Verdict("upsample_argmax", "fast", dtype, outcome, "" if outcome == RIGHT else reason)


def restart() -> None:
    """Forget what this process knows, as a new one would."""
    for table in (verdicts.PASSED_OVER, verdicts._known, verdicts._warned):
        table.clear()


def test_a_wrong_kernel_is_passed_over_with_one_warning():
    assert label() == 7
    with pytest.warns(KernelWarning) as caught:
        verdicts.apply([verdict(WRONG)], CPU)
    (message,) = [str(w.message) for w in caught]
    assert "upsample_argmax of fast: case double: zeros (float32)" in message
    assert verdicts.fingerprint(CPU)["device"] in message
    assert "hyperseg info --verify" in message
    assert "HYPERSEG_VERIFY=0" in message
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert label() == 1
        verdicts.apply([verdict(WRONG)], CPU)
    why = "its verification on this machine did not succeed: case double: zeros (float32)"
    assert chosen("upsample_argmax", "cpu") == ("reference", {"fast": [why]})
    assert not has_kernel("upsample_argmax", "cpu")
    with use_backend("fast"):
        assert label() == 7, "a backend named by the user runs regardless"
    assert chosen("upsample_argmax", "cuda")[1].keys() == {"cuda", "triton"}, "other devices are not concerned"


def test_a_new_process_reads_the_verdicts():
    verdicts.store([verdict(WRONG)], CPU)
    restart()
    with pytest.warns(KernelWarning, match="upsample_argmax of fast"):
        assert label() == 1
    assert label() == 1


def test_without_a_file_every_kernel_is_used(tmp_path):
    restart()
    assert label() == 7
    assert not (tmp_path / "cache").exists(), "reading creates nothing"


def test_the_variable_turns_it_off(monkeypatch):
    verdicts.store([verdict(WRONG)], CPU)
    restart()
    monkeypatch.setenv("HYPERSEG_VERIFY", "0")
    assert label() == 7


def test_one_wrong_dtype_is_enough_and_later_verdicts_count():
    with pytest.warns(KernelWarning):
        verdicts.apply([verdict(RIGHT), verdict(WRONG, "float16")], CPU)
    verdicts.apply([verdict(RIGHT)], CPU)
    assert label() == 1
    verdicts.apply([verdict(RIGHT, "float16")], CPU)
    assert label() == 7


def test_unknown_verdicts_hold_in_this_process_and_are_not_stored():
    with pytest.warns(KernelWarning, match="not reached"):
        verdicts.apply([verdict(UNKNOWN, reason="it was not reached within the time limit")], CPU)
    assert label() == 1
    assert verdicts.store([verdict(UNKNOWN), verdict(RIGHT, "float16")], CPU) == ""
    assert verdicts.load(CPU) == [verdict(RIGHT, "float16")]


def test_files_are_merged():
    first, second = verdict(RIGHT), verdict(WRONG, "float16")
    verdicts.store([first], CPU)
    verdicts.store([second], CPU)
    assert set(verdicts.load(CPU)) == {first, second}
    verdicts.store([verdict(RIGHT, "float16")], CPU)
    assert {v.outcome for v in verdicts.load(CPU)} == {RIGHT}


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"verdicts": 3}', '{"verdicts": [{"operator": "stem"}]}', '{"verdicts": [3]}', "\udcff"],
)
def test_a_damaged_file_is_ignored_and_replaced(text):
    verdicts.store([verdict(WRONG)], CPU)
    verdicts.path(CPU).write_bytes(text.encode(errors="surrogateescape"))
    restart()
    assert label() == 7
    verdicts.store([verdict(RIGHT)], CPU)
    assert verdicts.load(CPU) == [verdict(RIGHT)]


def test_a_folder_that_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HYPERSEG_CACHE", str(tmp_path / "file"))
    assert "cannot be stored in the cache folder" in verdicts.store([verdict(WRONG)], CPU)
    assert label() == 7


def test_no_home(monkeypatch):
    monkeypatch.delenv("HYPERSEG_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pathlib.Path.home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert label() == 7
    assert "no home" in verdicts.store([verdict(WRONG)], CPU)


CHANGES = {
    "torch": lambda m: m.setattr(torch, "__version__", "9.9.9"),
    "HYPERSEG_CPU_CAPABILITY": lambda m: m.setenv("HYPERSEG_CPU_CAPABILITY", "avx2"),
    "capability": lambda m: m.setattr(native, "cpu_capability", lambda: "avx3"),
    "aten": lambda m: m.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX9"),
    "device": lambda m: m.setattr(verdicts, "cpu_model", lambda: "Z80"),
    "extension": lambda m: m.setattr(verdicts, "_extension", lambda: "another build"),
    "verification": lambda m: m.setattr(verdicts, "_hash_of", lambda place: "other cases"),
}


@pytest.mark.parametrize("fact", CHANGES)
def test_what_verdicts_depend_on(fact, monkeypatch):
    verdicts.store([verdict(WRONG)], CPU)
    before = verdicts.fingerprint(CPU)
    CHANGES[fact](monkeypatch)
    after = verdicts.fingerprint(CPU)
    assert {name for name in after if after[name] != before.get(name)} >= {fact}
    assert verdicts.load(CPU) == []
    restart()
    assert label() == 7


def test_the_file_says_what_it_is_about():
    verdicts.store([verdict(RIGHT)], CPU)
    document = json.loads(verdicts.path(CPU).read_text())
    assert document["fingerprint"] == verdicts.fingerprint(CPU)
    assert all(isinstance(value, str) for value in document["fingerprint"].values())


def test_the_hash_of_files(tmp_path):
    (tmp_path / "a.py").write_text("1")
    first = verdicts._hash_of.__wrapped__(tmp_path)
    (tmp_path / "a.py").write_text("2")
    assert verdicts._hash_of.__wrapped__(tmp_path) != first
    (tmp_path / "a.py").write_text("1")
    (tmp_path / "unrelated.txt").write_text("3")
    assert verdicts._hash_of.__wrapped__(tmp_path) == first


def test_a_call_costs_no_more_with_verdicts_in_place():
    """A table without entries is one look-up: no Python function runs for it."""
    import sys

    def calls() -> int:
        count = 0

        def profile(frame, event, _):
            nonlocal count
            count += event == "call"

        sys.setprofile(profile)
        dispatch.select("upsample_argmax", (LOGITS, 1, 1))
        sys.setprofile(None)
        return count

    calls()
    loaded = calls()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "PASSED_OVER", {"cpu": {}})
        assert calls() == loaded


def test_the_named_backend_raises_no_matter_what(monkeypatch):
    monkeypatch.setitem(dispatch.PREFERENCE, "cpu", ("fast",))
    with pytest.warns(KernelWarning):
        verdicts.apply([verdict(WRONG)], CPU)
    with pytest.raises(BackendError, match="No backend supports upsample_argmax on cpu"):
        label()


@pytest.mark.skipif(os.name == "nt", reason="POSIX paths")
def test_the_cache_folder(monkeypatch):
    from hyperseg._files import cache_folder

    monkeypatch.delenv("HYPERSEG_CACHE")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/caches")
    assert str(cache_folder()) == "/var/caches/hyperseg"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert str(cache_folder()) == "/home/someone/.cache/hyperseg"
    monkeypatch.setattr("sys.platform", "darwin")
    assert str(cache_folder()) == "/home/someone/Library/Caches/hyperseg"
