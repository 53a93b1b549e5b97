"""An engine verifies the kernels once per machine: what a user sees, in processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hyperseg.ops import BACKENDS

ROOT = Path(__file__).resolve().parents[2]
BUILD = """
import logging, torch, hyperseg
from hyperseg.verify import processes
started = []
run_child = processes.run_child
processes.run_child = lambda *args: started.append(1) or run_child(*args)
model = hyperseg.synthesize_weights(hyperseg.create_model("hyperseg-s")).eval()
for size in ((64, 64), (32, 64)):
    engine = hyperseg.build_engine(model, size, device="cpu")
    assert engine(torch.zeros(1, *size, 3, dtype=torch.uint8)).shape == (1, *size)
print("children", len(started))
"""

pytestmark = pytest.mark.skipif(bool(BACKENDS["cpp"].lacks("stem")), reason="the extension has no C++ operators")


def run(*command: str, **variables: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | variables
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )


def test_once_per_machine():
    first = run("-c", BUILD)
    assert first.stdout == "children 1\n", first.stderr
    assert "KernelWarning" not in first.stderr
    second = run("-c", BUILD)
    assert second.stdout == "children 0\n", second.stderr
    (file,) = Path(os.environ["HYPERSEG_CACHE"]).rglob("*.json")
    entries = json.loads(file.read_text())["verdicts"]
    assert {e["operator"] for e in entries} == set(BACKENDS["cpp"].supported)
    assert {e["outcome"] for e in entries} == {"right"}, [e for e in entries if e["outcome"] != "right"]
    assert {e["dtype"] for e in entries} == {"float32", "float16", "bfloat16"}

    # Other instruction sets are another machine.
    facts = json.loads(run("-m", "hyperseg", "info", "--json", HYPERSEG_CPU_CAPABILITY="default").stdout)
    assert facts["instruction_sets"]["C++ operators"] == "default"
    assert facts["verification"]["cpu"].startswith("none yet")


def test_info_verifies():
    done = run("-m", "hyperseg", "info", "--verify")
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["upsample_argmax", "cpp", "bfloat16", "2"] in [row[:4] for row in rows if row[-1:] == ["right"]]
    assert f"{len(BACKENDS['cpp'].supported)} kernels compared with the reference, none wrong" in done.stdout
