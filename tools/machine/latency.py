"""How long one warp takes alone on an SM: its instructions in order, each when the compiler's control code lets it.

The control code of an instruction says how many cycles later the next one may issue, which covers arithmetic of fixed
latency, and which of six scoreboards it waits for, which covers the rest. Where few warps are resident, this time and
not the rate of issue bounds a kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tools.machine.sass import Instruction

# Cycles until a result arrives, on an H100 without load. L1, shared memory, L2 and DRAM: Luo et al., "Benchmarking and
# Dissecting the Nvidia Hopper GPU Architecture via Microbenchmarking" (2024). The others are those that such
# measurements of Ampere and Hopper agree on, to some cycles.
L1, SHARED, L2, DRAM = 41, 29, 263, 479
SPECIAL, DOUBLE, CONSTANT, SHUFFLE, SPECIAL_REGISTER, OPERANDS_READ, BARRIER = 20, 16, 30, 24, 25, 12, 25

_LATENCY = {
    **dict.fromkeys(("DADD", "DMUL", "DFMA", "DSETP"), DOUBLE),
    **dict.fromkeys(("LDS", "LDSM", "MOVM", "ATOMS"), SHARED),
    **dict.fromkeys(("LDC", "ULDC"), CONSTANT),
    **dict.fromkeys(("SHFL", "VOTE", "REDUX"), SHUFFLE),
    **dict.fromkeys(("S2R", "S2UR", "CS2R"), SPECIAL_REGISTER),
}
LOADS = ("LDG", "LD", "ATOMG", "ATOM")


def cycles(code: list[Instruction], trace: Iterable[tuple[int, int]], hits: Iterable[bool], memory: float) -> float:
    """Return the cycles that a warp takes.

    Args:
        trace: the segments of its code, in the order of execution.
        hits: for each executed load, whether L1 has the data.
        memory: cycles of the other loads.
    """
    now = 0.0
    scoreboards = [0.0] * 8
    copies: list[float] = []  # groups of asynchronous copies: when they have arrived
    cached = iter(hits)
    for i in _instructions(code, trace):
        control = i.control
        if control.waits:
            now = max(now, *(scoreboards[n] for n in range(6) if control.waits >> n & 1))
        latency: float = _LATENCY.get(i.operation, SPECIAL)
        if i.operation in LOADS:
            latency = L1 if next(cached) else memory
        elif i.operation == "LDGDEPBAR":
            copies.append(now + memory)
            latency = 0
        elif i.operation == "DEPBAR" and i.operands[0].startswith("SB"):
            left = int(i.operands[1], 16)
            now = max([now, *copies[: len(copies) - left]])
            copies = copies[len(copies) - left :] if left else []
        elif i.operation == "BAR":
            now += BARRIER
        elif i.operation == "MEMBAR" and not i.has("CTA"):
            now += L2  # until earlier stores are visible to other SMs
        if control.writes < 6:
            scoreboards[control.writes] = max(scoreboards[control.writes], now + latency)
        if control.reads < 6:
            scoreboards[control.reads] = max(scoreboards[control.reads], now + OPERANDS_READ)
        now += max(control.stall, 1)
    return now


def _instructions(code: list[Instruction], trace: Iterable[tuple[int, int]]) -> Iterator[Instruction]:
    for begin, end in trace:
        yield from code[begin:end]
