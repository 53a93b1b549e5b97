"""The C++ operators with the vectors of older CPUs, in processes of their own: the choice is made once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hyperseg.ops import native

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import torch
from hyperseg.ops import BACKENDS, reference
from tests.ops.cases import CASES, differentiable, double, outputs
from tests.ops.test_parity import backward_arguments, flat
from tests.tolerances import FORWARD, GRADIENT, assert_close

cpp, plain = BACKENDS["cpp"].implementations, BACKENDS["reference"].implementations
checked = 0
for case in CASES:
    if case.operator == "upsample_argmax":
        continue
    for dtype in (torch.float32, torch.float64):
        args = case.arguments(dtype)
        actual = outputs(cpp[case.operator].function(*args))
        expected = outputs(getattr(reference, case.operator)(*double(args)))
        for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
            assert_close(f"{case.id} output {i}", a, e, FORWARD[dtype])
        checked += 1
        name = f"{case.operator}_backward"
        if dtype == torch.float64 and differentiable(case.operator):
            args = backward_arguments(case, dtype, "cpu")
            actual, expected = flat(cpp[name].function(*args)), flat(plain[name].function(*args))
            for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
                assert_close(f"{case.id} gradient {i}", a, e, GRADIENT[dtype])
print("checked", checked)
"""


def run(script: str, capability: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"HYPERSEG_CPU_CAPABILITY": capability, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600
    )


@pytest.mark.skipif(native.extension()[0] is None, reason="the extension is not built")
@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_older_vectors(capability):
    result = run(SCRIPT, capability)
    assert result.returncode == 0, result.stderr[-3000:]
    assert int(result.stdout.split()[-1]) > 300


@pytest.mark.skipif(native.extension()[0] is None, reason="the extension is not built")
def test_unknown_vectors():
    script = """
import torch
from hyperseg import ops
with ops.use_backend("cpp"):
    ops.patch_conv2d(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 1, 1), out_channels=1)
"""
    result = run(script, "sse9")
    assert result.returncode
    assert "HYPERSEG_CPU_CAPABILITY must be default, avx2 or avx512, got sse9" in result.stderr
