"""The C++ operators with older instruction sets, each in a new process because it is chosen once per process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hyperseg.ops.backends import native

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import torch
from hyperseg.ops import BACKENDS, reference
from tests.ops.cases import CASES, LABELLING, differentiable, double, outputs
from tests.ops.test_parity import backward_arguments, flat
from tests.tolerances import FORWARD, GRADIENT, assert_close

cpp, plain = BACKENDS["cpp"].supported, BACKENDS["reference"].supported
checked = 0
for case in CASES:
    if case.operator in LABELLING or case.operator not in cpp:
        continue
    for dtype in (torch.float32, torch.float64):
        args = case.arguments(dtype)
        actual = outputs(cpp[case.operator](*args))
        expected = outputs(getattr(reference, case.operator)(*double(args)))
        for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
            assert_close(f"{case.id} output {i}", a, e, FORWARD[dtype])
        checked += 1
        name = f"{case.operator}_backward"
        if dtype == torch.float64 and differentiable(case.operator):
            args = backward_arguments(case, dtype, "cpu")
            actual, expected = flat(cpp[name](*args)), flat(plain[name](*args))
            for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
                assert_close(f"{case.id} gradient {i}", a, e, GRADIENT[dtype])
print("checked", checked)
"""


# An encoder block that computes SiLU alone: its convolutions are 1x1 with weight 1, and its gate is 1.
SILU = """
import torch
from hyperseg import ops
values = [-float("inf"), -3.4e38, -1e38, -1e37, -1e30, -1e4, -104, -89, -87.5, -30, -1, 0, 1, 30, 87.5, 104, 1e30]
for dtype in (torch.float32, torch.float64):
    one, none = torch.ones(1, dtype=dtype), torch.zeros(1, dtype=dtype)
    matrices = {"depthwise": one.view(1, 1, 1), "reduce": none[None], "gate": none[None], "project": one[None]}
    biases = {"depthwise_bias": none, "reduce_bias": none, "gate_bias": 100 * one, "project_bias": none}
    for value in torch.tensor(values, dtype=dtype):
        x = value.expand(1, 1, 1, 40).contiguous()
        with ops.use_backend("cpp"):
            y = ops.mbconv(x, None, None, **matrices, **biases, padding=(0, 0, 0, 0))
        expected = torch.nn.functional.silu(x.double()).to(dtype)
        torch.testing.assert_close(y, expected, rtol=2e-6, atol=1e-35, equal_nan=True)
print("equal")
"""


def run(script: str, capability: str | None) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment |= {} if capability is None else {"HYPERSEG_CPU_CAPABILITY": capability}
    return subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600
    )


@pytest.mark.skipif(native.extension()[0] is None, reason="the extension is not built")
@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_older_instruction_sets(capability):
    result = run(SCRIPT, capability)
    assert result.returncode == 0, result.stderr[-3000:]
    assert int(result.stdout.split()[-1]) > 300


@pytest.mark.skipif(native.extension()[0] is None, reason="the extension is not built")
@pytest.mark.parametrize("capability", ["default", "avx2", None], ids=["default", "avx2", "automatic"])
def test_silu_of_large_values(capability):
    """SiLU is 0 where the sigmoid is 0, also for the largest negative values."""
    result = run(SILU, capability)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.split() == ["equal"]


@pytest.mark.skipif(native.extension()[0] is None, reason="the extension is not built")
def test_an_unknown_instruction_set():
    script = """
import torch
from hyperseg import ops
with ops.use_backend("cpp"):
    ops.patch_conv2d(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 1, 1), out_channels=1)
"""
    result = run(script, "sse9")
    assert result.returncode
    assert "HYPERSEG_CPU_CAPABILITY must be default, avx2, avx512, avx512_bf16 or amx, got sse9" in result.stderr
