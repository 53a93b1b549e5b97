"""A run that continues from any of its states ends as the uninterrupted one does, bit for bit."""

import shutil

import pytest

import hyperseg
from hyperseg.training.config import ConfigError
from hyperseg.training.loop import train
from hyperseg.training.state import state_files
from tests.training.runs import differences, last_state, lines, make_folder, small, state_at

SETTINGS = ["run.save_every=1", "validation.every=2", "run.ema=0.9", "augmentation.jitter=[0.2,0.2,0.2,0.05]"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("data") / "boxes")


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """An uninterrupted run with a state at every step."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    assert train(small(data, *SETTINGS), run, "cpu").finished
    return run


def set_back(run, copy, step):
    """Copy a run as it is after a process was killed with ``step`` as its newest state and later lines in its log."""
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("final", "evaluation*"))
    for file in state_files(copy / "states")[step + 1 :]:
        file.unlink()


def without_speed(records):
    return [{key: r[key] for key in ("step", "loss", "lr", "grad_norm", "labelled")} for r in records]


@pytest.mark.parametrize("step", range(6))
def test_from_every_step(step, whole, data, tmp_path):
    run = tmp_path / "run"
    set_back(whole, run, step)
    outcome = train(small(data, *SETTINGS), run, "cpu", resume=True)
    assert outcome.finished
    assert differences(last_state(run), last_state(whole)) == []
    assert without_speed(lines(run)) == without_speed(lines(whole))
    assert lines(run, "validation.jsonl") == lines(whole, "validation.jsonl")
    found, expected = hyperseg.load(run / "final").state_dict(), hyperseg.load(whole / "final").state_dict()
    assert differences(dict(found), dict(expected)) == []


def test_with_workers(whole, data, tmp_path):
    """Neither the number of workers nor a change of it changes a number."""
    run = tmp_path / "run"
    set_back(whole, run, 3)
    train(small(data, *SETTINGS, "data.workers=2"), run, "cpu", resume=True)
    two, one = last_state(run), last_state(whole)
    del two["config"], one["config"]
    assert differences(two, one) == []


def test_from_a_validation_that_was_interrupted(whole, data, tmp_path):
    """The state is written before the validation, and says so; the validation is done first then."""
    run = tmp_path / "run"
    set_back(whole, run, 2)
    import torch

    state = state_at(run, 2)
    state |= {"validated": -1, "best": None}
    torch.save(state, run / "states" / "step-00000002.pt")
    (run / "validation.jsonl").write_text("")
    train(small(data, *SETTINGS), run, "cpu", resume=True)
    assert differences(last_state(run), last_state(whole)) == []
    assert lines(run, "validation.jsonl") == lines(whole, "validation.jsonl")


def test_a_run_that_is_complete_stays_as_it_is(whole, data, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    outcome = train(small(data, *SETTINGS), run, "cpu", resume=True)
    assert (outcome.step, outcome.finished) == (6, True)
    assert differences(last_state(run), last_state(whole)) == []


def test_an_existing_run_is_not_overwritten(whole, data):
    with pytest.raises(ConfigError, match="--resume to continue"):
        train(small(data, *SETTINGS), whole, "cpu")


def test_another_configuration_is_refused(whole, data):
    with pytest.raises(ConfigError, match=r"optimizer\.lr was 0\.001 and is 0\.01"):
        train(small(data, *SETTINGS, "optimizer.lr=0.01"), whole, "cpu", resume=True)


def test_resume_without_a_run_begins_one(data, tmp_path):
    outcome = train(small(data, "schedule.steps=1", "data.val=null"), tmp_path / "new", "cpu", resume=True)
    assert outcome.finished


def test_a_damaged_newest_state_costs_the_steps_since_the_one_before(whole, data, tmp_path, capfd):
    run = tmp_path / "run"
    set_back(whole, run, 4)
    file = state_files(run / "states")[-1]
    file.write_bytes(file.read_bytes()[:1000])
    train(small(data, *SETTINGS), run, "cpu", resume=True)
    assert "step-00000004.pt cannot be read" in capfd.readouterr().err
    assert differences(last_state(run), last_state(whole)) == []
