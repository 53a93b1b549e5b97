"""The Triton kernels without a GPU: run these tests in a new process, because Triton reads TRITON_INTERPRET once."""

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


# In two processes, which pytest-xdist can run at the same time: more would import and collect once more each.
OTHERS = ("test_memory.py", "test_gradients.py", "test_stem.py", "test_upsample_argmax.py")
# The interpreter takes milliseconds per thread block and class. Of the other cases, some are marked slow, and each runs
# in one dtype of two, unless slow tests run. The longest run on GPUs only. A chain is a loop over `mbconv`'s kernels.
LARGE = (
    "255 or efficientnet-last or mbconv-tall or mbconv-wide or dilated-kernel-5 or kernel-5-groups or plain-cityscapes "
    "or patch_conv2d-no-bias or mbconv_chain-other-kernels"
)
# Memory is tested with one case per operator. Strides only enter products: two changes of them suffice, `stepped`, of
# all strides, and `channels_last`, which has an output of its own. Other backends run all changes.
REPEATED = "test_memory and (neighbour or no-bias or (any_strides and (sliced or transposed or expanded or offset)))"
CASES = f"triton-cpu and not ({LARGE}) and not ({REPEATED})"


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="this process already runs the interpreter")
@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels are tested on this machine's GPU")
@pytest.mark.parametrize(
    ("marked", "files"),
    [
        pytest.param("not slow and not second_dtype", ["test_parity.py"], id="parity"),
        pytest.param("not slow", OTHERS, id="others"),
        pytest.param(
            "not slow and second_dtype", ["test_parity.py"], id="parity in the other dtype", marks=pytest.mark.slow
        ),
    ],
)
def test_kernels_in_the_interpreter(marked: str, files: list[str]):
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", marked, "-k", CASES]
        + [f"tests/ops/{name}" for name in files],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]
    passed = int(re.search(r"(\d+) passed", result.stdout)[1])
    assert passed >= 4 * len(BACKENDS["triton"].supported), result.stdout[-5000:]
