"""Processes that are asked to end, or killed: what is lost, and that the run continues."""

import os
import random
import signal
import time

import pytest

from tests.training.runs import differences, last_state, lines, make_folder
from tests.training.worker import finish, start

LONG = ["schedule.steps=100000", "run.save_every=100000"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("data") / "boxes", val=3)


def wait_for(condition, processes, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        assert all(process.is_alive() for process in processes)
        time.sleep(0.02)


def log_has(run, count):
    path = run / "log.jsonl"
    return path.exists() and path.read_bytes().count(b"\n") >= count


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_signal_saves_and_ends_with_0(number, workers, data, tmp_path):
    """The workers get it as well, as from a scheduler or a terminal."""
    changes = [*LONG, f"data.workers={workers}", "data.val=null"]
    processes = start(tmp_path, 1, root=str(data), run=str(tmp_path / "run"), changes=changes, group=True)
    wait_for(lambda: (tmp_path / "run" / "states" / "step-00000000.pt").exists(), processes)
    time.sleep(1)
    began = time.monotonic()
    os.killpg(processes[0].pid, number)
    codes, messages = finish(tmp_path, processes, timeout=60)
    assert codes == [0], messages
    assert time.monotonic() - began < 20
    assert "the state is saved" in messages
    step = last_state(tmp_path / "run")["step"]
    assert step > 0
    assert [record["step"] for record in lines(tmp_path / "run")] == list(range(1, step + 1))


def test_a_signal_during_validation(data, tmp_path, monkeypatch):
    """The state of the step is written already; the validation is given up, and done first by the next process."""
    from hyperseg.evaluation.inference import NetworkLabeller

    original = NetworkLabeller.labels

    def slow(self, images):
        time.sleep(0.5)
        return original(self, images)

    monkeypatch.setattr(NetworkLabeller, "labels", slow)
    changes = ["schedule.steps=4", "validation.every=2", "run.save_every=100"]
    settings = {"root": str(data), "run": str(tmp_path / "run"), "changes": changes}
    processes = start(tmp_path, 1, **settings)
    wait_for(lambda: (tmp_path / "run" / "states" / "step-00000002.pt").exists(), processes)
    os.kill(processes[0].pid, signal.SIGTERM)
    codes, messages = finish(tmp_path, processes, timeout=60)
    assert codes == [0], messages
    assert last_state(tmp_path / "run")["step"] == 2
    assert lines(tmp_path / "run", "validation.jsonl") == []
    monkeypatch.undo()
    codes, messages = finish(tmp_path, start(tmp_path, 1, **settings, resume=True))
    assert codes == [0], messages
    assert [record["step"] for record in lines(tmp_path / "run", "validation.jsonl")] == [2, 4]


def test_a_signal_to_one_of_two_processes_ends_both(data, tmp_path):
    processes = start(tmp_path, 2, root=str(data), run=str(tmp_path / "run"), changes=[*LONG, "data.val=null"])
    wait_for(lambda: (tmp_path / "run" / "states" / "step-00000000.pt").exists(), processes)
    time.sleep(1)
    os.kill(processes[1].pid, signal.SIGTERM)
    codes, messages = finish(tmp_path, processes, timeout=60)
    assert codes == [0, 0], messages
    assert last_state(tmp_path / "run")["step"] > 0


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_any_moment(kills, data, tmp_path):
    """Again and again, also while it writes: each time it continues from the newest state, to the same end."""
    changes = ["schedule.steps=8", "run.save_every=1", "run.keep=2", "data.val=null"]
    whole = {"root": str(data), "run": str(tmp_path / "whole"), "changes": changes}
    assert finish(tmp_path, start(tmp_path, 1, **whole))[0] == [0]
    settings = {**whole, "run": str(tmp_path / "run"), "resume": True}
    generator, before, killed = random.Random(1), -1, 0
    while killed < kills:
        processes = start(tmp_path, 1, **settings)
        newest = tmp_path / "run" / "states" / f"step-{before + 1:08d}.pt"
        wait_for(newest.exists, processes)
        time.sleep(generator.uniform(0, 0.3))
        processes[0].kill()
        finish(tmp_path, processes)
        step = last_state(tmp_path / "run")["step"]
        assert step > before
        killed += 1
        # Begin again with the states of an early step, so that there is always something to do.
        before = step if step < 7 else restart(tmp_path / "run")
    codes, messages = finish(tmp_path, start(tmp_path, 1, **settings))
    assert codes == [0], messages
    assert differences(last_state(tmp_path / "run"), last_state(tmp_path / "whole")) == []
    assert [r["loss"] for r in lines(tmp_path / "run")] == [r["loss"] for r in lines(tmp_path / "whole")]


def restart(run):
    for file in (run / "states").iterdir():
        file.unlink()
    return -1
