"""Compile every Triton kernel as the networks launch it, for GPUs that need not be present, and read its machine code.

No kernel uses the stack or spills, kernels meant for tensor cores use them, and none needs more registers or shared
memory than `budgets.json` allows. Registered operators are included automatically.
"""

import itertools
import os

import pytest
import torch

from hyperseg.models.variants import VARIANTS
from hyperseg.ops import BACKENDS

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("in the interpreter nothing is compiled", allow_module_level=True)
pytest.importorskip("triton", reason="Triton is not installed")

from tools.gate import budgets, calls
from tools.gate.capture import ARCHITECTURES


def parameters() -> list:
    found = []
    for operator, network in itertools.product(BACKENDS["triton"].supported, VARIANTS):
        for dtype, arch in itertools.product(budgets.DTYPES, ARCHITECTURES):
            name = f"{operator}-{network}-{str(dtype)[6:]}-sm_{arch}"
            marks = [] if budgets.is_quick(operator, network, dtype, arch) else [pytest.mark.slow]
            found.append(pytest.param(operator, network, dtype, arch, id=name, marks=marks))
    return found


@pytest.mark.parametrize(("operator", "network", "dtype", "arch"), parameters())
def test_kernels_fit_the_gpu(operator: str, network: str, dtype: torch.dtype, arch: int):
    if operator not in {call.operator for call in calls.recorded(network)}:
        pytest.skip(f"{network} makes no call of {operator}")
    built = budgets.build(operator, network, dtype, arch)
    assert built, f"{operator} launched nothing"
    budget = budgets.read()
    problems = [problem for kernel in built for problem in [*kernel.problems, *kernel.excess(budget)]]
    assert not problems, "\n".join(sorted(set(problems)))


def test_every_budget_is_of_a_kernel():
    """A renamed kernel keeps its budget under the new name; no entry is stale."""
    sources = "".join(path.read_text() for path in budgets.SOURCES)
    unknown = [name for name in budgets.read() if f"def {name}(" not in sources]
    assert not unknown, "run python -m tools.gate.budgets --write"
