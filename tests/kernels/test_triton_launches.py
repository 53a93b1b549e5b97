"""Triton launches as the emulator gets them: parameters, grid and machine code of what a launcher launches."""

import os
import re
import subprocess

import pytest
import torch

from hyperseg import ops

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("in the interpreter nothing is compiled", allow_module_level=True)
pytest.importorskip("triton", reason="Triton is not installed")

from tools.gate.binary import TOOL
from tools.machine.state import PARAMETERS
from tools.machine.triton_launches import library, recording


@pytest.fixture(scope="module")
def launch():
    logits = torch.empty(1, 5, 9, 35, dtype=torch.float16)
    with ops.use_backend("triton"), recording() as launches:
        labels = ops.upsample_argmax(logits, (18, 70))
    (found,) = launches
    assert labels.shape == (1, 18, 70)
    return found


def test_parameters_are_those_of_the_machine_code(launch, tmp_path):
    """Constants are left out, tuples are flat, and two pointers to scratch memory come last."""
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(launch.compiled.asm["cubin"])
    printed = subprocess.run([TOOL, "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    (constants,) = re.findall(r"CONSTANT\[0\]:(\d+)", printed)
    assert int(constants) - PARAMETERS == len(launch.parameters)


def test_the_emulator_executes_what_was_launched(launch):
    counts = library().count(launch)
    assert launch.grid == (2, 2, 1)  # 10 x 36 cells in tiles of 8 x 32
    assert (counts.blocks, counts.warps) == (4, 32)
    assert library().resources(launch).registers > 0
    # Each label is stored once, as one byte in sectors of 32.
    assert 18 * 70 <= sum(counts.written.values()) <= 18 * 70 + 64
