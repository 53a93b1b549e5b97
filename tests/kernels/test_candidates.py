"""The launch options that ``bench/tune.py`` would try; without these tests, errors in them only show on a GPU."""

from collections.abc import Iterator
from unittest import mock

import pytest
import torch

from hyperseg.models.variants import VARIANTS
from hyperseg.ops import BACKENDS

pytest.importorskip("triton", reason="Triton is not installed")

from triton.runtime.jit import JITFunction

from bench import tune
from hyperseg.kernels import launch
from tools.gate import calls
from tools.gate.binary import usage
from tools.gate.capture import SHARED, compiling

ARCHITECTURE = 90
OPERATORS = [name for name in BACKENDS["triton"].supported if name not in ("decoder_level_argmax", "mbconv_chain")]
NETWORKS = ("hyperseg-m-cityscapes", *VARIANTS)  # the first of them that calls an operator stands for all
OF_LAUNCHES = {"num_warps", "num_stages"}  # options that are no parameters of a kernel


def calls_of(operator: str) -> Iterator[tuple]:
    for network in NETWORKS:
        found = [call for call in calls.recorded(network) if call.operator == operator]
        if found:
            return (calls.arguments(call, torch.float16) for call in found)
    raise AssertionError(f"no network calls {operator}")


def test_candidates_are_of_kernels_and_set_their_options():
    candidates = tune.candidates()
    with (
        mock.patch.object(JITFunction, "run", return_value=None),
        mock.patch.object(launch, "architecture", return_value=ARCHITECTURE),
        launch.lookups() as lookups,
    ):
        for operator in OPERATORS:
            for arguments in calls_of(operator):
                BACKENDS["triton"].supported[operator](*arguments)
    assert candidates.keys() <= {lookup.kernel for lookup in lookups.values()}
    for lookup in lookups.values():
        for options in candidates.get(lookup.kernel, []):
            assert options.keys() <= lookup.default.keys() | OF_LAUNCHES, lookup.kernel


@pytest.mark.slow
@pytest.mark.parametrize("operator", OPERATORS)
def test_candidates_compile_and_fit(operator: str):
    """Candidates may spill, and lose; they must fit a GPU's shared memory."""
    function = BACKENDS["triton"].supported[operator]
    candidates, tried, spilled = tune.candidates(), set(), 0
    for arguments in calls_of(operator):
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
    print(f"{operator}: {len(tried)} lines, {spilled} launches use the stack")
