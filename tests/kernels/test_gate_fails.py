"""The gate can fail: kernels that spill, avoid tensor cores or exceed a budget are reported."""

import json
import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("in the interpreter nothing is compiled", allow_module_level=True)
triton = pytest.importorskip("triton", reason="Triton is not installed")

import triton.language as tl  # noqa: E402

from tools.gate import budgets  # noqa: E402
from tools.gate.binary import usage  # noqa: E402
from tools.gate.budgets import Built  # noqa: E402
from tools.gate.capture import ARCHITECTURES, compiling  # noqa: E402

FUSION = {"enable_fp_fusion": True}
architectures = pytest.mark.parametrize("arch", ARCHITECTURES)


@triton.jit
def _gemm_kernel(x_ptr, y_ptr, out_ptr, K, SIZE: tl.constexpr, DOT: tl.constexpr):
    """GEMM of square tiles, by tensor cores or by multiply and sum."""
    o = tl.arange(0, SIZE)
    total = tl.zeros((SIZE, SIZE), tl.float32)
    for k in range(0, K, SIZE):
        x = tl.load(x_ptr + o[:, None] * K + k + o[None, :])
        y = tl.load(y_ptr + (k + o[:, None]) * SIZE + o[None, :])
        if DOT:
            total += tl.dot(x, y)
        else:
            total += tl.sum(x[:, :, None].to(tl.float32) * y[None, :, :].to(tl.float32), 1)
    tl.store(out_ptr + o[:, None] * SIZE + o[None, :], total)


@triton.jit
def _iterate_kernel(x_ptr, n, SIZE: tl.constexpr):
    """x = n times x * x + x"""
    o = tl.arange(0, SIZE)
    x = tl.load(x_ptr + o)
    for _ in range(n):
        x = x * x + x
    tl.store(x_ptr + o, x)


def gemm(arch: int, dot: bool) -> Built:
    x, y = torch.empty(16, 64, dtype=torch.float16), torch.empty(64, 16, dtype=torch.float16)
    with compiling(arch) as compiled:
        _gemm_kernel[(1,)](x, y, torch.empty(16, 16), 64, SIZE=16, DOT=dot, **FUSION)
    return Built("_gemm_kernel", arch, usage(compiled[0].kernel), tensor_cores=True)


@architectures
def test_a_sound_kernel_passes(arch: int):
    built = gemm(arch, dot=True)
    assert built.usage.tensor_core
    assert not built.problems


@architectures
def test_spilling_is_reported(arch: int):
    """256 values per thread, all of them live in every round of a loop."""
    with compiling(arch) as compiled:
        _iterate_kernel[(1,)](torch.empty(2**13), 1000, SIZE=2**13, num_warps=1, **FUSION)
    built = Built("_iterate_kernel", arch, usage(compiled[0].kernel), tensor_cores=False)
    assert built.usage.stack
    assert built.problems == [f"_iterate_kernel for sm_{arch} uses or spills {built.usage.stack} bytes of stack"]


@architectures
def test_missing_tensor_cores_are_reported(arch: int):
    built = gemm(arch, dot=False)
    assert built.problems == [f"_gemm_kernel for sm_{arch} has no tensor-core instruction"]


def test_budgets_are_enforced():
    built = gemm(90, dot=True)
    need = {"registers": built.usage.registers, "shared": built.usage.shared}
    assert not built.excess({built.name: need})
    slack = budgets.SLACK["registers"]
    (problem,) = built.excess({built.name: need | {"registers": need["registers"] - slack - 1}})
    assert "registers" in problem
    (problem,) = built.excess({})
    assert "has no budget" in problem


def test_a_launch_is_compiled_as_in_production():
    """Arguments that are a multiple of 16 are specialised, others are not; the same launch again is compiled once."""

    def launch(inner: int) -> None:
        x, y = torch.empty(16, inner, dtype=torch.float16), torch.empty(inner, 16, dtype=torch.float16)
        _gemm_kernel[(1,)](x, y, torch.empty(16, 16), inner, SIZE=16, DOT=True, **FUSION)

    with compiling(90) as compiled:
        for inner in (64, 128, 40):
            launch(inner)
    assert compiled[0].kernel is compiled[1].kernel
    assert compiled[0].kernel is not compiled[2].kernel


def test_without_a_budget_of_its_own_the_most_of_other_versions_counts(tmp_path):
    path = tmp_path / "budgets.json"
    others = {"triton 0.1": {"k": {"registers": 8, "shared": 0}}, "triton 0.2": {"k": {"registers": 4, "shared": 5}}}
    path.write_text(json.dumps(others))
    assert budgets.read(path) == {"k": {"registers": 8, "shared": 5}}
    path.write_text(json.dumps(others | {budgets.version(): {"k": {"registers": 6, "shared": 0}}}))
    assert budgets.read(path) == {"k": {"registers": 6, "shared": 0}}
