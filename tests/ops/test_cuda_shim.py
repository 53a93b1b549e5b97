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
WORKERS = str(min(4, os.cpu_count() or 1))


pytestmark = [
    pytest.mark.skipif(not SHIM.is_file(), reason="the shim is not built; run `make shim`"),
    pytest.mark.skipif(native.emulated(), reason="this process already runs the shim"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels are tested on this machine's GPU"),
]


def test_kernels_in_the_shim():
    assert passed("cuda-cpu") >= 10 * len(BACKENDS["cuda"].supported)


@pytest.mark.parametrize("launches", ["fewest", "most"])
def test_encoder_blocks_with_fewest_and_most_launches(launches: str):
    assert passed("cuda-cpu and mbconv", "tests/ops/test_parity.py", HYPERSEG_MBCONV=launches) >= 10


def passed(selection: str, tests: str = "tests/ops", **environment: str) -> int:
    command = [sys.executable, "-m", "pytest", "-q", "-n", WORKERS, "-p", "no:cacheprovider", "-m", "not slow"]
    result = subprocess.run(
        [*command, "-k", selection, tests],
        cwd=ROOT,
        env=os.environ | {"HYPERSEG_EXTENSION": str(SHIM)} | environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]
    return int(re.search(r"(\d+) passed", result.stdout)[1])
