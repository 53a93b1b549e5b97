"""On a GPU no step waits for the device, whatever the losses; seen on the fake CUDA device."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.training.runs import lines, make_folder

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real GPU")

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {
    "weighted": ["loss.class_weights=median_frequency", "loss.dice=0.5", "loss.lovasz=0.5", "loss.then=ohem"],
    "parts": ["loss.kind=bootstrapped", "batch=4", "speed.accumulate=2", "speed.amp=bf16", "run.ema=0.9"],
    "waiting": ["--wait"],
}


@pytest.mark.parametrize("name", SETTINGS)
def test_steps_do_not_wait(name, tmp_path):
    data = make_folder(tmp_path / "boxes", val=1)
    arguments = ["tests/training/watched_run.py", str(data), str(tmp_path / "run"), "schedule.steps=3", *SETTINGS[name]]
    environment = {**os.environ, "HYPERSEG_BACKEND": "reference", "HYPERSEG_VERIFY": "0", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.fakes.cuda", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr
    assert len(lines(tmp_path / "run")) == 3
    assert result.stdout.count("waits:") == (3 if name == "waiting" else 0)
