"""Compile every launch option that ``bench/tune.py`` would try; without this, errors only show on a GPU."""

import pytest
import torch

from hyperseg.ops import BACKENDS

pytest.importorskip("triton", reason="Triton is not installed")

from bench import tune
from hyperseg.kernels import launch
from tools.gate import calls
from tools.gate.binary import usage
from tools.gate.capture import SHARED, compiling

NETWORK, ARCHITECTURE = "hyperseg-m-cityscapes", 90
OPERATORS = [name for name in BACKENDS["triton"].supported if name not in ("decoder_level_argmax", "mbconv_chain")]


@pytest.mark.slow
@pytest.mark.parametrize("operator", OPERATORS)
def test_candidates_compile_and_fit(operator: str):
    """Candidates may spill, and lose; they must fit a GPU's shared memory."""
    function = BACKENDS["triton"].supported[operator]
    candidates, tried, spilled = tune.candidates(), set(), 0
    for call in (call for call in calls.recorded(NETWORK) if call.operator == operator):
        arguments = calls.arguments(call, torch.float16)
        with compiling(ARCHITECTURE), launch.lookups() as lookups:
            function(*arguments)
        for line, lookup in lookups.items():
            if line in tried:
                continue
            tried.add(line)
            for options in candidates.get(lookup.kernel, []):
                with launch.forced(line, options), compiling(ARCHITECTURE) as launches:
                    function(*arguments)
                of_line = [found for found in launches if found.line == line]
                assert of_line, f"{line} with {options} launched nothing"
                for found in of_line:
                    needed = usage(found.kernel)
                    spilled += needed.stack > 0
                    assert needed.shared <= SHARED[ARCHITECTURE], f"{line} with {options}: {needed}"
    assert tried, f"{NETWORK} makes no call of {operator}"
    print(f"{operator}: {len(tried)} lines, {spilled} launches use the stack")
