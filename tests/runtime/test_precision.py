"""``exact_float32`` whichever interface the caller chose TF32 with, and the caller's choice afterwards."""

import json
import subprocess
import sys

import pytest

LEGACY = "b.cuda.matmul.allow_tf32, b.cudnn.allow_tf32 = True, False"
NEWER = "b.cuda.matmul.fp32_precision = b.cudnn.conv.fp32_precision = 'tf32'"
CHOICES = {"none": "pass", "old": LEGACY, "new": NEWER, "both": f"{LEGACY}; {NEWER}"}

# The settings belong to the process, and cannot be undone: each choice has a fork of one that has imported torch.
SCRIPT = """
import json, os, sys
import torch
from hyperseg.runtime.precision import exact_float32

b = torch.backends
def state():
    return [setting.fp32_precision for setting in (b.cuda.matmul, b.cudnn.conv, b.cudnn.rnn)]
def legacy():
    try:
        return b.cuda.matmul.allow_tf32, b.cudnn.allow_tf32
    except RuntimeError:
        return "refused"

def run(choice):
    exec(choice)
    before = state(), legacy()
    with exact_float32(torch.device("cuda")):
        inside = state()
    return {"before": before, "inside": inside, "after": (state(), legacy())}

for name, choice in json.loads(sys.argv[1]).items():
    child = os.fork()
    if not child:
        print(json.dumps([name, run(choice)]), flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, name
"""


@pytest.fixture(scope="module")
def runs() -> dict[str, dict]:
    command = [sys.executable, "-c", SCRIPT, json.dumps(CHOICES)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(line) for line in done.stdout.splitlines())


@pytest.mark.parametrize("choice", CHOICES)
def test_float32_is_exact_inside(choice: str, runs):
    run = runs[choice]
    assert set(run["inside"]) <= {"ieee", "none"}  # "none": nothing allows less than float32
    assert run["after"] == run["before"]
