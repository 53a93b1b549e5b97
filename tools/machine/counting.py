"""What a launch executes: counts of a sample of its blocks, scaled to the grid."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import numpy as np

from tools.machine.flow import Machine
from tools.machine.latency import DRAM, L2, cycles
from tools.machine.loops import integer_divisions
from tools.machine.memory import SECTOR, Buffers
from tools.machine.sass import Instruction, parse
from tools.machine.state import Array, Threads

SAMPLE = 24  # blocks at most: a launch of fewer is executed whole
LANES = 16384  # threads at once at most, for memory
_CLASSES = {
    "mufu": ("MUFU",),
    "hmma": ("HMMA", "HGMMA"),
    "shared": ("LDS", "STS", "LDSM", "STSM", "ATOMS", "SHFL"),
    "global_access": ("LDG", "STG", "LDGSTS", "ATOMG", "RED", "REDG", "ATOM", "LD", "ST"),
    "convert": ("F2F", "F2I", "I2F", "FRND", "FCHK"),
    "double": ("DADD", "DMUL", "DFMA", "DSETP"),
    "barriers": ("BAR",),
    "constant": ("LDC", "ULDC"),
}


@dataclass(frozen=True)
class Counts:
    """What a grid executes, estimated from the sampled blocks. Instructions are warp instructions: issue slots.

    Attributes:
        blocks, warps: of the grid; warps per block is ``warps / blocks``.
        sampled: blocks executed.
        instructions: issued, whether their guard was true or not.
        most: instructions of the sampled block with the most.
        mufu, hmma, shared, global_access, convert, double, barriers, constant: instructions by pipeline.
        divisions: integer divisions by a number that the compiler does not know.
        shared_wavefronts: passes through shared memory, bank conflicts included; at least one per instruction.
        global_sectors: sectors of 32 bytes that accesses to global memory ask for.
        l2_bytes: bytes between SMs and L2: what a block reads twice through L1 counts once.
        read, written: bytes of memory read and written, each byte once, by pointer argument: its position in the
            parameters.
        by_instruction: issued, per instruction of the function.
        traces: of two warps, the segments of code that they execute and which loads hit L1.
    """

    blocks: int
    warps: int
    sampled: int
    instructions: float
    most: float
    mufu: float
    hmma: float
    shared: float
    global_access: float
    convert: float
    double: float
    barriers: float
    constant: float
    divisions: float
    shared_wavefronts: float
    global_sectors: float
    l2_bytes: float
    read: dict[int, float] = field(repr=False)
    written: dict[int, float] = field(repr=False)
    by_instruction: Array = field(repr=False, compare=False)
    code: list[Instruction] = field(repr=False, compare=False)
    traces: list[tuple[list[tuple[int, int]], list[bool]]] = field(repr=False, compare=False)

    @functools.cached_property
    def cycles_l2(self) -> float:
        """Cycles that a warp takes alone on an SM, if L2 has everything."""
        return max(cycles(self.code, *trace, L2) for trace in self.traces)

    @functools.cached_property
    def cycles_dram(self) -> float:
        """The same if nothing is in L2."""
        return max(cycles(self.code, *trace, DRAM) for trace in self.traces)


def sample(blocks: int, most: int = SAMPLE) -> Array:
    """Return the blocks to execute: all of a small grid; else the first, the last and others at irregular distances."""
    if blocks <= most:
        return np.arange(blocks)
    # Golden-ratio steps: no period of a grid's rows or of a table of parts repeats in them.
    inner = (np.arange(1, 4 * most) * 0.6180339887498949 % 1 * blocks).astype(np.int64)
    found = dict.fromkeys([0, blocks - 1, *inner.tolist()])
    return np.sort(np.array(list(found)[:most]))


def count(
    text: str,
    grid: tuple[int, ...],
    block: int | tuple[int, ...],
    shared_bytes: int,
    parameters: bytes,
    memory: Buffers | None = None,
    most_blocks: int = SAMPLE,
    constants: dict[int, bytes] | None = None,
) -> Counts:
    """Execute a sample of a launch's blocks and return what the launch executes.

    Args:
        text: the function as ``cuobjdump -sass`` prints it.
        grid, block: as given to the launch; missing dimensions are 1.
        shared_bytes: dynamic shared memory per block.
        parameters: the parameter buffer.
        memory: contents of global memory; default: zeros.
        most_blocks: blocks to execute at most.
        constants: constant banks besides the parameters', by number: see :func:`tools.machine.elf.constants`.
    """
    code = parse(text)
    shape, per_block = _three(grid), _three(block)
    blocks, threads = int(np.prod(shape)), int(np.prod(per_block))
    chosen = sample(blocks, most_blocks)
    size = max(1, LANES // threads)
    machines = []
    for begin in range(0, len(chosen), size):
        part = chosen[begin : begin + size]
        machine = Machine(code, Threads(len(part), per_block, shape, part), shared_bytes, parameters, memory, constants)
        machine.run()
        machines.append(machine)
    return _counts(code, blocks, threads // 32, parameters, machines)


def _three(shape: int | tuple[int, ...]) -> tuple[int, int, int]:
    values = (shape,) if isinstance(shape, int) else tuple(shape)
    x, y, z = (*values, 1, 1, 1)[:3]
    return x, y, z


def _counts(code: list[Instruction], blocks: int, warps: int, parameters: bytes, machines: list[Machine]) -> Counts:
    executed = np.concatenate([m.executed for m in machines], 1)
    sampled = executed.shape[1]
    scale = blocks / sampled
    per_instruction = executed.sum(1) * scale
    operations = np.array([i.operation for i in code])

    def total(names: tuple[str, ...]) -> float:
        return float(per_instruction[np.isin(operations, names)].sum())

    watched = machines[len(machines) // 2]
    traces = [(trace, watched.memory.hits[warp]) for warp, trace in watched.traces.items()]
    traffic = [m.memory.traffic for m in machines]
    wavefronts = sum(float(t.wavefronts.sum()) for t in traffic) * scale
    sectors = sum(float(t.sectors.sum()) for t in traffic) * scale
    read, written, from_l2 = _bytes(parameters, traffic, scale)
    return Counts(
        blocks=blocks,
        warps=warps * blocks,
        sampled=sampled,
        instructions=float(per_instruction.sum()),
        most=float(executed.sum(0).max()),
        divisions=float(per_instruction[integer_divisions(code)].sum()),
        shared_wavefronts=wavefronts + total(("SHFL",)),
        global_sectors=sectors,
        l2_bytes=from_l2,
        read=read,
        written=written,
        by_instruction=per_instruction,
        code=code,
        traces=traces,
        **{name: total(names) for name, names in _CLASSES.items()},
    )


def pointers(parameters: bytes) -> dict[int, int]:
    """Return the 64-bit words of the parameters that may be addresses: their first position in bytes, by value."""
    words = np.frombuffer(parameters[: len(parameters) // 8 * 8], np.uint64).tolist()
    return {word: 8 * n for n, word in reversed(list(enumerate(words))) if 1 << 32 <= word < 1 << 47}


def _bytes(parameters: bytes, traffic: list, scale: float) -> tuple[dict[int, float], dict[int, float], float]:
    """Return bytes read and written by pointer, each byte once, and bytes between SMs and L2.

    A pointer's accesses are those between it and the next pointer. Of a sample, what blocks share counts once: the sum
    over blocks is at most the span of addresses between the sample's first and last access.
    """
    known = pointers(parameters)
    bases = np.array(sorted(known), np.int64)
    result: dict[str, dict[int, float]] = {"load": {}, "store": {}, "bypass": {}}
    from_l2 = 0.0
    within = (1 << 43) - 1
    for kind, found in result.items():
        parts = [np.unique(np.concatenate(t.touched[kind])) for t in traffic if t.touched[kind]]
        if not parts:
            continue
        if kind == "bypass":
            from_l2 += SECTOR * scale * sum(len(part) for t in traffic for part in t.touched[kind])
        else:
            from_l2 += SECTOR * scale * sum(map(len, parts))
        sectors = np.concatenate([part & within for part in parts])
        owners = np.searchsorted(bases, sectors * SECTOR + SECTOR - 1, side="right") - 1
        for owner in np.unique(owners):
            mine = sectors[owners == owner]
            span = float(mine.max() - mine.min() + 1)
            count_ = len(np.unique(mine)) if scale == 1 else min(len(mine) * scale, span)
            found[known[int(bases[owner])] if owner >= 0 else -1] = SECTOR * count_
    read = result["load"]
    for position, size in result["bypass"].items():
        read[position] = max(size, read.get(position, 0.0))
    return read, result["store"], from_l2
