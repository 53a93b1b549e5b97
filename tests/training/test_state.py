"""States: complete or absent, kept by number, refused with a reason; and a writer that is killed."""

import random
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from hyperseg.training.config import ConfigError
from hyperseg.training.state import (
    StateError,
    check_same_run,
    latest_state,
    load_state,
    random_state,
    remove_unfinished,
    save_state,
    set_random_state,
    state_files,
)
from tests.limits import file_size_limit


def test_the_newest_are_kept(tmp_path):
    for step in (3, 6, 9, 12):
        save_state(tmp_path, {"step": step}, keep=2)
    assert [file.name for file in state_files(tmp_path)] == ["step-00000009.pt", "step-00000012.pt"]
    assert latest_state(tmp_path)[0]["step"] == 12


def test_a_full_disk_keeps_the_states_before(tmp_path):
    save_state(tmp_path, {"step": 1}, keep=1)
    with file_size_limit(10_000), pytest.raises(OSError, match=r"File too large.*step-00000002\.pt"):
        save_state(tmp_path, {"step": 2, "tensor": torch.ones(10_000)}, keep=1)
    assert [file.name for file in tmp_path.iterdir()] == ["step-00000001.pt"]


def test_states_after_the_present_step_are_removed(tmp_path):
    """They are of a run that was set back, and would be taken for the newest."""
    for step in (3, 6, 9):
        save_state(tmp_path, {"step": step}, keep=5)
    save_state(tmp_path, {"step": 4}, keep=5)
    assert [load_state(file)["step"] for file in state_files(tmp_path)] == [3, 4]


def test_a_damaged_state_is_named_and_the_one_before_is_taken(tmp_path):
    for step in (1, 2):
        save_state(tmp_path, {"step": step, "tensor": torch.ones(1000)}, keep=5)
    newest = state_files(tmp_path)[-1]
    newest.write_bytes(newest.read_bytes()[:500])
    state, problems = latest_state(tmp_path)
    assert state["step"] == 1
    assert len(problems) == 1
    assert "step-00000002.pt cannot be read" in problems[0]


def test_nothing_in_a_state_is_executed(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (open, (str(tmp_path / "touched"), "w"))

    torch.save({"format": 1, "step": 1, "x": Harmful()}, tmp_path / "step-00000001.pt")
    with pytest.raises(StateError, match="cannot be read"):
        load_state(tmp_path / "step-00000001.pt")
    assert not (tmp_path / "touched").exists()


def test_other_files_are_no_states(tmp_path):
    (tmp_path / "step-1.pt").write_bytes(b"")
    (tmp_path / ".0123456789abcdef.tmp.pt").write_bytes(b"half")
    assert state_files(tmp_path) == []
    assert latest_state(tmp_path) == (None, [])
    remove_unfinished(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["step-1.pt"]
    assert latest_state(tmp_path / "missing") == (None, [])


def test_a_full_disk_leaves_the_old_states(tmp_path, monkeypatch):
    save_state(tmp_path, {"step": 1}, keep=1)

    def fail(state, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="No space left"):
        save_state(tmp_path, {"step": 2}, keep=1)
    assert [file.name for file in tmp_path.iterdir()] == ["step-00000001.pt"]


def test_global_generators_continue(tmp_path):
    save_state(tmp_path, {"step": 1, "random": random_state()}, keep=1)
    expected = (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random())  # noqa: NPY002
    set_random_state(latest_state(tmp_path)[0]["random"])
    assert (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()) == expected  # noqa: NPY002


def test_another_configuration_is_refused_by_key(tmp_path):
    saved = {"batch": 4, "optimizer": {"lr": 1e-3}, "data": {"root": "/a", "options": {"x": 1}}}
    check_same_run(saved, {**saved, "data": {"root": "/b", "options": {"x": 1}}}, tmp_path)
    with pytest.raises(ConfigError, match=r"optimizer\.lr was 0\.001 and is 0\.002; data\.options was"):
        check_same_run(saved, {**saved, "optimizer": {"lr": 2e-3}, "data": {"root": "/a", "options": {}}}, tmp_path)


WRITER = """
import sys, torch
from pathlib import Path
from hyperseg.training.state import save_state
folder = Path(sys.argv[1])
for step in range(1, 10_000):
    save_state(folder, {"step": step, "tensors": torch.full((500_000,), float(step))}, keep=2)
    print(step, flush=True)
"""


@pytest.mark.slow
def test_a_writer_killed_at_any_moment_loses_nothing(tmp_path):
    """Twenty times: the newest state is the last that was reported as written, or the one being written then."""
    generator = random.Random(0)
    for attempt in range(20):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, text=True)
        process.stdout.readline()
        time.sleep(generator.uniform(0, 0.1))
        process.kill()
        reported = [1, *map(int, process.stdout.read().split("\n")[:-1])]
        process.wait()
        process.stdout.close()
        state, problems = latest_state(folder)
        assert problems == []
        assert state["step"] in (reported[-1], reported[-1] + 1)
        assert torch.equal(state["tensors"], torch.full((500_000,), float(state["step"])))
