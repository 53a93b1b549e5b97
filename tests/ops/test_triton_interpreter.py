"""The Triton kernels without a GPU: the same tests in a process of its own, as Triton reads TRITON_INTERPRET once."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hyperseg.ops import BACKENDS

ROOT = Path(__file__).resolve().parents[2]


FILES = ("test_parity.py", "test_memory.py", "test_gradients.py", "test_stem.py", "test_upsample_argmax.py")
# The interpreter takes milliseconds a block and a class: what takes it long is marked slow, or is for GPUs.
LARGE = (
    "255 or efficientnet-last or mbconv-tall or mbconv-wide or dilated-kernel-5 or kernel-5-groups or plain-cityscapes "
    "or patch_conv2d-no-bias"
)
# What launchers allocate and which strides they read: of each operator one case, in the stranger layouts.
REPEATED = "test_memory and (neighbour or no-bias or ((promises or neither) and contiguous))"
WORKERS = str(min(4, os.cpu_count() or 1))
CASES = f"triton-cpu and not ({LARGE}) and not ({REPEATED})"


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="this process is that one")
@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels are tested on the GPU")
def test_kernels_in_the_interpreter():
    files = [f"tests/ops/{name}" for name in FILES]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", WORKERS, "-p", "no:cacheprovider", "-m", "not slow", "-k", CASES]
        + files,
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]
    passed = int(re.search(r"(\d+) passed", result.stdout)[1])
    assert passed >= 10 * len(BACKENDS["triton"].supported), result.stdout[-5000:]
