"""A few random calls per operator; `python -m tests.stress` runs as many as there is time for."""

import pytest
import torch

from tests.ops.targets import targets
from tests.stress.draw import OPERATORS, draw
from tests.stress.judge import judge

# By backend: calls per operator, and the largest number of multiply-adds of one.
SIZES = {"cpp": (20, 2e5), "cuda": (8, 5e4), "triton": (2, 3e3)}
DTYPES = (torch.float16, torch.float32)  # those that all backends have here


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize(
    "target", [pytest.param(t, id=t.id) for t in targets() if t.device == "cpu" and t.backend in SIZES]
)
def test_random_calls(target, operator: str):
    if target.reasons(operator):
        pytest.skip("; ".join(target.reasons(operator)))
    calls, work = SIZES[target.backend]
    wrong = {}
    for number in range(calls):
        call = draw(1, number, (operator,), DTYPES, work, flush=False)
        if found := judge(call, target.backend).wrong:
            wrong[f"{number}: {call}"] = found
    assert not wrong
