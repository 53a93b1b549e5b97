"""How long kernels take on a GPU, from what they execute. docs/kernels/predictions.md explains it.

Everything assumed of a GPU is here; everything about a kernel is counted (tools/machine).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.core.launches import Foreign, Kernel
from tools.machine.counting import Counts
from tools.machine.library import Library, Resources
from tools.machine.recording import Launch

# Instructions per cycle of a busy SM: 60 % of the four that it can issue, which well-written kernels reach.
ISSUE = 2.4
# Cycles of an SM per warp instruction: 16 special-function units (CUDA C++ Programming Guide, throughput of native
# arithmetic instructions, 9.0); m16n8k16 at 1024 multiply-adds per cycle and SM, half of the rate that wgmma reaches;
# one pass of 128 bytes through shared memory or L1.
SPECIAL, TENSOR, PASS = 2.0, 2.0, 1.0
# Microseconds. In a CUDA graph a kernel that depends on the one before it begins this much after it; one that does
# nothing still takes the second number. Others measure 1.3 to 2 us on an H100; the planner in csrc/cuda has the same.
GAP, LEAST = 1.5, 2.5
# Of cuDNN's convolutions of small maps no machine code is read; a few blocks that each wait for memory.
CONVOLUTION = 5.0
# Part of L2 that keeps a map until the next kernel reads it: the rest is weights and what the hash does not spread.
KEPT = 0.8


@dataclass(frozen=True)
class Gpu:
    """A GPU of compute capability 9.0.

    Attributes:
        dram, l2: bytes per second: of a large copy, and of reads that hit L2 (5.5 to 6 TB/s are measured by others).
        l2_bytes: its size.
    """

    name: str
    dram: float
    l2_bytes: float
    l2: float = 5.5e12
    sms: int = 132
    clock: float = 1.755e9

    # Of an SM.
    registers: int = 65536
    shared_bytes: int = 228 * 1024
    threads: int = 2048
    blocks: int = 32


GPUS = {
    "h100": Gpu("H100 SXM", 3.0e12, 50e6),
    "h200": Gpu("H200", 4.3e12, 60e6),
}


@dataclass(frozen=True)
class Prediction:
    """The time of one kernel.

    Attributes:
        us: from the end of the kernel before it to its own.
        work: microseconds by limit: issue, special, tensor, shared, l2, dram, latency; the largest counts.
        resident: blocks that fit on an SM; `busiest` those that the busiest SM computes in all.
    """

    kernel: Kernel
    us: float
    work: dict[str, float]
    counts: Counts | None = field(default=None, repr=False)
    resident: int = 0
    busiest: int = 0

    @property
    def throughput(self) -> float:
        """The time without the limit by latency, as if there were always other warps to run."""
        limits = [us for name, us in self.work.items() if name != "latency"]
        return max(LEAST, GAP + max(limits)) if self.counts is not None else self.us

    @property
    def limit(self) -> str:
        """What the kernel's time is bound by."""
        largest = max(self.work, key=lambda name: self.work[name])
        return "launch" if self.work[largest] <= LEAST - GAP else largest

    @property
    def name(self) -> str:
        launch = self.kernel.launch
        return launch.kernel if isinstance(launch, Launch) else launch.operator


class Cache:
    """What is in L2: memory in the order of its last use."""

    def __init__(self, size: float):
        self.size, self.used = size, dict[int, float]()

    def touch(self, address: int, count: float) -> float:
        """Use memory; return the bytes of it that were not there."""
        since = 0.0
        for other, size in reversed(self.used.items()):
            since += size
            if other == address or since > self.size:
                break
        hit = address in self.used and since <= self.size
        known = self.used.pop(address, 0.0)
        self.used[address] = max(count, known)
        return max(0.0, count - known) if hit else count


def predict(kernels: Sequence[Kernel], library: Library, gpu: Gpu) -> list[Prediction]:
    """Predict the kernels of a step that is repeated, as a captured frame is."""
    library.preload([k.launch for k in kernels if isinstance(k.launch, Launch)])
    cache = Cache(KEPT * gpu.l2_bytes)
    for _ in range(2):  # the first time fills the cache
        found = [_predict(kernel, library, gpu, cache) for kernel in kernels]
    return found


def _predict(kernel: Kernel, library: Library, gpu: Gpu, cache: Cache) -> Prediction:
    launch = kernel.launch
    if isinstance(launch, Foreign):
        return _foreign(kernel, launch, gpu)
    counts, resources = library.count(launch), library.resources(launch)
    missed = _missed(launch, counts, cache)
    resident = occupancy(launch, resources, gpu)
    busiest = math.ceil(counts.blocks / gpu.sms)
    micro = 1e6 / gpu.clock
    share = busiest / counts.blocks  # of the grid, on the busiest SM
    # Of several blocks the average counts; of one the largest.
    instructions = counts.most if busiest == 1 else counts.instructions * share
    from_dram = min(1.0, missed / max(sum(counts.read.values()), 1.0))  # part of what is read
    alone = counts.cycles_l2 + from_dram * (counts.cycles_dram - counts.cycles_l2)
    # Blocks come and go: with more than fit at once, an SM's time is the average over them.
    rounds = max(1.0, busiest / resident)
    work = {
        "issue": instructions / ISSUE * micro,
        "special": counts.mufu * share * SPECIAL * micro,
        "tensor": counts.hmma * share * TENSOR * micro,
        "shared": (counts.shared_wavefronts + max(counts.global_access, counts.global_sectors / 4))
        * share
        * PASS
        * micro,
        "l2": counts.l2_bytes / gpu.l2 * 1e6,
        "dram": (missed + sum(counts.written.values()) * (missed > 0)) / gpu.dram * 1e6,
        "latency": rounds * alone * micro,
    }
    return Prediction(kernel, max(LEAST, GAP + max(work.values())), work, counts, resident, busiest)


def _missed(launch: Launch, counts: Counts, cache: Cache) -> float:
    """Return the bytes that a launch reads from DRAM: those that the cache does not have."""

    def address(position: int) -> int:
        return int.from_bytes(launch.parameters[position : position + 8], "little") if position >= 0 else 0

    missed = sum(cache.touch(address(position), size) for position, size in counts.read.items())
    for position, size in counts.written.items():
        cache.touch(address(position), size)
    return missed


def occupancy(launch: Launch, resources: Resources, gpu: Gpu) -> int:
    """Return how many blocks of a launch are resident on an SM at once."""
    warps = launch.threads // 32
    per_warp = -(-resources.registers * 32 // 256) * 256
    # Registers are divided among four schedulers.
    by_registers = gpu.registers // 4 // per_warp * 4 // warps
    shared = -(-(launch.shared_bytes + resources.shared_bytes) // 128) * 128
    return max(1, min(by_registers, gpu.shared_bytes // max(shared, 1024), gpu.threads // launch.threads, gpu.blocks))


def _foreign(kernel: Kernel, launch: Foreign, gpu: Gpu) -> Prediction:
    work = {"l2": launch.bytes / (gpu.l2 if launch.bytes < KEPT * gpu.l2_bytes / 2 else gpu.dram) * 1e6}
    least = CONVOLUTION if launch.operator in ("conv2d", "convolution") else LEAST
    return Prediction(kernel, max(least, GAP + work["l2"]), work)
