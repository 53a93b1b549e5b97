"""Exact float32 whatever interface the user chose TF32 with, and the user's choice after it."""

import subprocess
import sys

import pytest

LEGACY = "b.cuda.matmul.allow_tf32, b.cudnn.allow_tf32 = True, False"
NEWER = "b.cuda.matmul.fp32_precision = b.cudnn.conv.fp32_precision = 'tf32'"


@pytest.mark.parametrize("choice", ["pass", LEGACY, NEWER, f"{LEGACY}; {NEWER}"], ids=["none", "old", "new", "both"])
def test_float32_is_exact_inside(choice: str):
    program = f"""
import torch
from hyperseg.runtime.device import exact_float32

b = torch.backends
def state():
    return [place.fp32_precision for place in (b.cuda.matmul, b.cudnn.conv, b.cudnn.rnn)]
def legacy():
    try:
        return b.cuda.matmul.allow_tf32, b.cudnn.allow_tf32
    except RuntimeError:
        return "refused"

{choice}
before = state(), legacy()
with exact_float32():
    assert state() == ["ieee"] * 3, state()
assert (state(), legacy()) == before, (state(), legacy(), before)
"""
    subprocess.run([sys.executable, "-c", program], check=True)  # the switches are the process's
