"""The log of a run, its figures of speed, the guard over its numbers, its pictures and curves."""

import json
import math
import time

import numpy as np
import pytest
import torch
from PIL import Image

from hyperseg.data.labels import default_label_set
from hyperseg.training import ConfigError
from hyperseg.training.guard import FiniteGuard, NonFiniteError
from hyperseg.training.log import Console, Meter, RunLog, progress_line, read_lines
from hyperseg.training.pictures import WIDTH, plot, save_pictures
from hyperseg.training.validation import Picture, evenly_spaced

RECORD = {"step": 1, "loss": 0.5, "lr": 1e-3, "grad_norm": 2.0, "labelled": 10, "images_per_s": 3.0, "wait": 0.0}


def record(step, **changes):
    return {**RECORD, "memory_gb": 1.0, "step": step, **changes}


def written(folder, steps, step=0):
    log = RunLog(folder, step, active=True)
    log.steps(record(s) for s in steps)
    log.validation({"step": steps[-1], "miou": 0.25})
    log.close()


def test_a_run_that_is_set_back_has_no_step_twice(tmp_path):
    written(tmp_path, range(1, 8))
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 8, "lo')  # cut off by the end of the process
    written(tmp_path, range(5, 7), step=4)
    assert [r["step"] for r in read_lines(tmp_path / "log.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert [r["step"] for r in read_lines(tmp_path / "validation.jsonl")] == [6]


def test_numbers_that_are_not_finite_are_null(tmp_path):
    log = RunLog(tmp_path, 0, active=True)
    log.steps([record(1, loss=math.nan, grad_norm=math.inf)])
    log.close()
    found = json.loads((tmp_path / "log.jsonl").read_text(), parse_constant=lambda text: pytest.fail(text))
    assert (found["loss"], found["grad_norm"]) == (None, None)


def test_other_processes_write_nothing(tmp_path):
    log = RunLog(tmp_path, 0, active=False)
    log.steps([record(1)])
    log.flush()
    log.close()
    assert list(tmp_path.iterdir()) == []


def test_speed_counts_steps_and_waiting_but_no_validation(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    meter, cpu = Meter(), torch.device("cpu")
    for _ in range(2):
        meter.asked()
        now[0] += 0.25
        meter.arrived(8)
        now[0] += 0.75
        each = meter.read(cpu, "log")
        assert (each["images_per_s"], each["wait"]) == (8.0, 0.25)
    now[0] += 1000  # a validation
    meter.restart()
    assert meter.read(cpu, "console")["images_per_s"] == 8.0
    assert meter.left(10) == pytest.approx(10)


def test_the_progress_line():
    line = progress_line(record(20, wait=0.02), 400, 5400.0)
    expected = ["step 20/400", "loss 0.5000", "lr 1.00e-03", "3.0 images/s", "data 2 %", "memory 1.0 GB", "left 90 min"]
    assert line.split("  ") == expected
    assert "hyperseg data cache" in progress_line(record(60, wait=0.06), 400, 10.0)
    assert "hyperseg data cache" not in progress_line(record(20, wait=0.06), 400, 10.0)
    assert "loss -" in progress_line(record(20, loss=None), 400, 10.0)


def test_a_message_after_a_progress_line_on_a_terminal(monkeypatch, capsys):
    console = Console(active=True)
    console.terminal = True
    monkeypatch.setattr("os.get_terminal_size", lambda _: type("Size", (), {"columns": 10}))
    monkeypatch.setattr("sys.stderr.fileno", lambda: 2, raising=False)
    console.progress("0123456789 too long")
    console.say("done\x1b")
    assert capsys.readouterr().err == "\r\x1b[K012345678\nhyperseg train: done\\x1b\n"


def test_without_scaling_the_first_number_that_is_not_finite_ends_the_run():
    guard = FiniteGuard(scaled=False)
    guard.check(1, 0.5, 1.0, ["a.png"])
    with pytest.raises(NonFiniteError, match=r"a gradient is not finite at step 2; its images: a\.png, b\.png"):
        guard.check(2, 0.5, math.inf, ["a.png", "b.png"])
    with pytest.raises(NonFiniteError, match="the loss is not finite at step 3"):
        FiniteGuard(scaled=False).check(3, math.nan, math.nan, ["a.png"])


def test_with_scaling_only_a_series_ends_the_run():
    guard = FiniteGuard(scaled=True)
    for step in range(1, 100):
        guard.check(step, 0.5, math.inf if step % 20 else 1.0, ["a.png"])
        guard.check(step, math.nan if step % 3 else 0.5, 1.0, ["a.png"])
    guard = FiniteGuard(scaled=True)
    guard.check(1, math.nan, math.nan, ["a.png"])
    guard.check(2, math.nan, math.nan, ["a.png"])
    with pytest.raises(NonFiniteError, match="the loss is not finite at step 3 for 3 steps"):
        guard.check(3, math.nan, math.nan, ["a.png"])


def test_pictures_have_a_row_per_image(tmp_path):
    labels = np.zeros((100, 960), np.uint8)
    small = np.zeros((60, 80), np.uint8)
    pictures = [
        Picture("wide", np.full((100, 960, 3), 200, np.uint8), labels, labels + 1),
        Picture("small", np.full((60, 80, 3), 10, np.uint8), small, small),
    ]
    save_pictures(pictures, default_label_set(2), tmp_path / "pictures" / "step.jpg")
    with Image.open(tmp_path / "pictures" / "step.jpg") as image:
        assert image.size == (3 * WIDTH + 8, 50 + 4 + 60)
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert abs(pixels[10, 10] - 200).max() < 5  # the image
    assert pixels[10, WIDTH + 20, 0] > pixels[10, WIDTH + 20, 1] + 50  # class 1 is dark red, over the image
    assert pixels[10, 2 * WIDTH + 20].max() < 10  # class 0 is black


def test_evenly_spaced_images():
    class Fake:
        def __len__(self):
            return 101

        def subset(self, indices):
            return list(indices)

    assert evenly_spaced(Fake(), 5) == [0, 25, 50, 75, 100]
    assert evenly_spaced(Fake(), 1) == [0]
    assert len(set(evenly_spaced(Fake(), 25))) == 25
    whole = Fake()
    assert evenly_spaced(whole, None) is whole
    assert evenly_spaced(whole, 200) is whole


@pytest.mark.parametrize("steps", [1, 500])
def test_curves(steps, tmp_path):
    pytest.importorskip("matplotlib")
    log = RunLog(tmp_path, 0, active=True)
    log.steps(record(s, loss=2 / s if s % 7 else None, labelled=s % 5) for s in range(1, steps + 1))
    log.validation({"step": steps, "miou": None})
    log.close()
    with Image.open(plot(tmp_path)) as image:
        assert image.width > 500


def test_curves_of_no_run(tmp_path):
    with pytest.raises(ConfigError, match=r"has no log\.jsonl"):
        plot(tmp_path)
