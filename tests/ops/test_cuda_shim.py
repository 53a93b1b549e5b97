"""The CUDA kernels without a GPU: run these tests in a separate process with the extension built for the shim."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hyperseg.ops import BACKENDS
from hyperseg.ops.backends import native

ROOT = Path(__file__).resolve().parents[2]
SHIM = ROOT / "build/shim/hyperseg/_C.abi3.so"
PARITY = "tests/ops/test_parity.py"

pytestmark = [
    pytest.mark.skipif(not SHIM.is_file(), reason="the shim is not built; run `make shim`"),
    pytest.mark.skipif(native.emulated(), reason="this process already runs the shim"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels are tested on this machine's GPU"),
]


@pytest.mark.parametrize("parity", [True, False], ids=["parity", "others"])
def test_kernels_in_the_shim(parity: bool):
    """In two processes, which pytest-xdist can run at the same time: more would import and collect once more each."""
    selected = [PARITY] if parity else ["tests/ops", f"--ignore={PARITY}"]
    assert passed("cuda-cpu", *selected) >= 10 * len(BACKENDS["cuda"].supported)


@pytest.mark.slow
def test_slow_tests_in_the_shim():
    assert passed("cuda-cpu", "tests/ops", marked="slow or second_dtype") >= 10


@pytest.mark.parametrize(("launches", "error"), [("fewest", "1"), ("most", "-1")])
def test_encoder_with_fewest_and_most_launches_and_the_largest_error_of_tanh(launches: str, error: str):
    """The error of the instruction that SiLU uses in 16-bit floats is what the PTX manual allows, in one direction."""
    chosen = {"HYPERSEG_MBCONV": launches, "HYPERSEG_SHIM_TANH": error}
    assert passed("cuda-cpu and (mbconv or stem)", PARITY, **chosen) >= 20


def passed(selection: str, *tests: str, marked: str = "not slow and not second_dtype", **environment: str) -> int:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", marked, "-k", selection]
    result = subprocess.run(
        [*command, *tests],
        cwd=ROOT,
        env=os.environ | {"HYPERSEG_EXTENSION": str(SHIM)} | environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]
    return int(re.search(r"(\d+) passed", result.stdout)[1])
