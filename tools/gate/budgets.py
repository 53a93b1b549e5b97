"""Budgets of the Triton kernels: registers and shared memory, checked and recorded.

    python -m tools.gate.budgets --write

compiles every kernel of the Triton backend at every shape, dtype and architecture of the gate, and rewrites
``budgets.json`` for the installed version of Triton. A commit that raises a budget says why.
"""

import argparse
import collections
import concurrent.futures
import functools
import itertools
import json
import multiprocessing
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from hyperseg.kernels.launch import REGISTERS, forced, modules, version
from hyperseg.models.variants import VARIANTS
from hyperseg.ops import BACKENDS
from tools.gate import calls
from tools.gate.binary import Usage, usage
from tools.gate.capture import ARCHITECTURES, Launch, compiling

FILE = Path(__file__).with_name("budgets.json")
SOURCES = sorted((FILE.parents[2] / "kernels").rglob("*.py"))
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
# `make test` compiles one network, and of a network of the other version the operators that differ.
QUICK = {
    "hyperseg-m-cityscapes": tuple(BACKENDS["triton"].supported),
    "hyperseg-l-voc": (
        "context_head",
        "decoder_level",
        "mbconv",
        "normalise_frames",
        "patch_inverted_residual_batch_norm_backward",
    ),
}


def is_quick(operator: str, network: str, dtype: torch.dtype, arch: int) -> bool:
    """Return whether ``make test`` compiles this case."""
    return (dtype, arch) == (torch.float16, 90) and operator in QUICK.get(network, ())


# ptxas allocates registers in steps of 8, and a patch release moves a kernel by one step. sm_90 and later reserve 1 KiB
# of shared memory for a kernel with barriers of its own.
SLACK = {"registers": 8, "shared": 1024}


@dataclass(frozen=True)
class Built:
    """A kernel compiled for one launch."""

    name: str
    arch: int
    usage: Usage
    tensor_cores: bool  # required
    line: str = ""  # table key of the launch

    @property
    def problems(self) -> list[str]:
        """Return its faults that no budget allows."""
        found = []
        if self.usage.stack:
            found.append(f"uses or spills {self.usage.stack} bytes of stack")
        if self.tensor_cores and not self.usage.tensor_core:
            found.append("has no tensor-core instruction")
        return [f"{self.name} for sm_{self.arch} {problem}" for problem in found]

    def excess(self, budgets: dict[str, dict[str, int]]) -> list[str]:
        """Return the resources of which it needs more than its budget."""
        if self.name not in budgets:
            return [f"{self.name} has no budget: run python -m tools.gate.budgets --write"]
        return [
            f"{self.name} for sm_{self.arch} takes {getattr(self.usage, what)} {what}, its budget is {most} + {slack}"
            for what, slack in SLACK.items()
            if getattr(self.usage, what) > (most := budgets[self.name][what]) + slack
        ]


def build(operator: str, network: str, dtype: torch.dtype, arch: int) -> list[Built]:
    """Compile every kernel that this operator launches for this network, once per table key."""
    is_16_bit = dtype != torch.float32
    once = {(id(launch.kernel), launch.line): launch for launch in compiled(operator, network, dtype, arch)}
    return [
        Built(k.name, arch, usage(k), is_16_bit and k.name in tensor_core_kernels(), line) for k, line in once.values()
    ]


def compiled(operator: str, network: str, dtype: torch.dtype, arch: int) -> list[Launch]:
    function = BACKENDS["triton"].supported[operator]
    with compiling(arch) as launches:
        for call in calls.recorded(network):
            if call.operator == operator:
                function(*calls.arguments(call, dtype))
    return launches


def without_stack(operator: str, network: str, dtype: torch.dtype, arch: int, line: str, registers: int) -> int | None:
    """Return the fewest registers, above these, with which no launch of this key uses the stack, or None."""
    for most in range(registers // 8 * 8 + 8, 255, 8):
        with forced(line, {"maxnreg": most}):
            launches = compiled(operator, network, dtype, arch)
        if not any(usage(launch.kernel).stack for launch in launches if launch.line == line):
            return most
    return None


@functools.cache
def tensor_core_kernels() -> frozenset[str]:
    """Return the kernels whose modules list them in TENSOR_CORES, for float16 and bfloat16."""
    return frozenset(name for module in modules() for name in getattr(module, "TENSOR_CORES", ()))


def read(path: Path = FILE) -> dict[str, dict[str, int]]:
    """Return the budgets for the installed Triton; for a kernel without one, the largest of the other versions."""
    document = json.loads(path.read_text())
    others = largest((name, need) for kernels in document.values() for name, need in kernels.items())
    return others | document.get(version(), {})


def largest(needs: Iterable[tuple[str, dict[str, int]]]) -> dict[str, dict[str, int]]:
    """Return the largest need of any launch, by kernel."""
    found: dict[str, dict[str, int]] = {}
    for name, need in needs:
        most = found.setdefault(name, dict.fromkeys(SLACK, 0))
        for what in SLACK:
            most[what] = max(most[what], need[what])
    return found


Case = tuple[str, str, torch.dtype, int]  # operator, network, dtype, architecture


def cases(operators: list[str], quick: bool) -> list[Case]:
    """Return the cases of these operators, network by network."""
    every = itertools.product(VARIANTS, ARCHITECTURES, DTYPES, operators)
    found = [(operator, network, dtype, arch) for network, arch, dtype, operator in every]
    return [case for case in found if is_quick(*case)] if quick else found


class Found(NamedTuple):
    """Needs, faults, and entries of ``registers.json`` that would mend them, of one case."""

    needs: list[tuple[str, dict[str, int]]]
    problems: list[str]
    limits: dict[str, int]


def examine(case: Case) -> Found:
    built = build(*case)
    limits: dict[str, int] = {}
    for kernel in built:
        if kernel.usage.stack and kernel.line:
            most = without_stack(*case, kernel.line, kernel.usage.registers)
            if most is not None:
                limits[kernel.line] = max(most, limits.get(kernel.line, 0))
    needs = [(kernel.name, {what: getattr(kernel.usage, what) for what in SLACK}) for kernel in built]
    return Found(needs, [problem for kernel in built for problem in kernel.problems], limits)


def write(operators: list[str], quick: bool, jobs: int) -> list[str]:
    """Record the needs of these operators with the installed Triton, and return their faults.

    Removed kernels are dropped if everything was compiled. Compiled kernels stay in Triton's cache: after an
    interruption the same command continues.
    """
    document = json.loads(FILE.read_text()) if FILE.is_file() else {}
    everything = not quick and set(operators) == set(BACKENDS["triton"].supported)
    kept = {} if everything else document.get(version(), {})
    needs = list(kept.items()) if quick else []
    problems: dict[str, list[str]] = collections.defaultdict(list)
    limits: dict[str, dict[str, int]] = collections.defaultdict(dict)
    todo = cases(operators, quick)
    with concurrent.futures.ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        for i, (case, found) in enumerate(zip(todo, pool.map(examine, todo), strict=True)):
            title = "{} of {}, {} for sm_{}".format(*case[:2], str(case[2])[6:], case[3])
            print(f"[{i + 1}/{len(todo)}] {title}", *found.problems, sep="\n  ", file=sys.stderr, flush=True)
            needs += found.needs
            for problem in found.problems:
                problems[problem].append(title)
            known = limits[f"sm_{case[3]}"]
            known |= {line: max(most, known.get(line, 0)) for line, most in found.limits.items()}
    document[version()] = dict(sorted((kept | largest(needs)).items()))
    save(FILE, document)
    if any(limits.values()):
        record_registers(limits)
    return [f"{problem}: {', '.join(titles)}" for problem, titles in problems.items()]


def record_registers(limits: dict[str, dict[str, int]]) -> None:
    """Add these register limits, by architecture and table key, to ``registers.json``."""
    document = json.loads(REGISTERS.read_text()) if REGISTERS.is_file() else {}
    mine = document.setdefault(version(), {})
    for arch, lines in limits.items():
        known = mine.get(arch, {}) | {line: {"maxnreg": most} for line, most in lines.items()}
        mine[arch] = dict(sorted(known.items()))
    save(REGISTERS, document)


def save(path: Path, document: dict) -> None:
    path.write_text(json.dumps(dict(sorted(document.items())), indent=2) + "\n")


def main() -> None:
    known = list(BACKENDS["triton"].supported)
    parser = argparse.ArgumentParser(prog="python -m tools.gate.budgets", description=__doc__)
    parser.add_argument("--write", action="store_true", required=True, help="rewrite budgets.json")
    parser.add_argument("--quick", action="store_true", help="only what `make test` compiles; budgets only grow")
    parser.add_argument("--op", nargs="+", default=known, choices=known, metavar="NAME", help="only these operators")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="compile this many cases at once (all cores)")
    args = parser.parse_args()
    problems = write(args.op, args.quick, args.jobs)
    again = "These kernels failed the gate; registers.json now has what may help some of them. Run this again:"
    sys.exit("\n".join([again, *problems]) if problems else 0)


if __name__ == "__main__":
    main()
