"""Control flow: threads that diverge, convergence barriers, barriers of a block.

The runnable threads with the lowest address run first, until they branch apart, wait, or meet others. Threads that wait
at a convergence barrier (BSYNC) go on when all threads of their warp that entered its region have arrived, so warps
diverge and converge as on the hardware, and an instruction counts once per warp with an active thread.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tools.machine import access, floating, lanes  # noqa: F401  (they define instructions)
from tools.machine.integer import BUILDERS, Step, is_predicate
from tools.machine.memory import Buffers, Memory
from tools.machine.sass import SIZE, Instruction, UnknownInstruction
from tools.machine.state import WARP, Array, Mask, State, Threads

RUN, BARRIER, CONVERGENCE, WARP_BARRIER, DONE = range(5)
_FLOW = {"BRA", "BRX", "BRXU", "CALL", "RET", "EXIT", "KILL", "BSSY", "BSYNC", "BREAK", "WARPSYNC", "BAR"}
# Without a definition: they raise when they are reached.
_FLOW |= {"JMP", "JMX", "BMOV", "BPT"}


class Machine:
    """Executes one function for some blocks of a grid.

    Attributes:
        executed: how often each instruction was issued, [instruction, block], counted per warp.
        traces: segments of the code in the order of execution, of some warps.
    """

    def __init__(
        self,
        code: list[Instruction],
        threads: Threads,
        shared_bytes: int,
        parameters: bytes,
        buffers: Buffers | None = None,
        constants: dict[int, bytes] | None = None,
        limit: int = 5_000_000,
    ):
        self.code, self.limit = code, limit
        s = self.state = State(threads, parameters, constants)
        s.memory = self.memory = Memory(s, len(code), shared_bytes, buffers)
        self.steps: list[Step | None] = [None] * len(code)
        self.is_flow = [i.operation in _FLOW for i in code]
        self.pc = np.zeros(s.n, np.int64)
        self.status = np.zeros(s.n, np.int8)
        self.waits = np.zeros(s.n, np.int64)  # for which barrier
        self.members = np.zeros((16, s.n), bool)  # of convergence barriers
        self.executed = np.zeros((len(code), threads.blocks), np.int64)
        self.traces: dict[int, list[tuple[int, int]]] = {warp: [] for warp in self.memory.hits}

    def run(self) -> None:
        with np.errstate(all="ignore"):
            budget = self.limit
            while True:
                runnable = self.status == RUN
                if not runnable.any():
                    if (self.status == DONE).all():
                        return
                    self._release()
                    continue
                budget -= self._run_from(runnable)
                if budget < 0:
                    raise RuntimeError(f"more than {self.limit} steps: a loop that waits for another block?")

    def _run_from(self, runnable: Array) -> int:
        """Run the threads with the lowest address until they part, wait or meet others; return the number of steps."""
        place = int(self.pc[runnable].min())
        active = runnable & (self.pc == place)
        others = self.pc[runnable & ~active]
        stop = int(others.min()) if len(others) else len(self.code)
        mask: Mask = None if active.all() else active
        self.memory.active = mask
        issued = self._per_block(active)
        traces = [trace for warp, trace in self.traces.items() if active[warp * WARP : (warp + 1) * WARP].any()]
        steps = 0
        while True:
            start = place
            while place < stop and not self.is_flow[place]:
                step = self.steps[place] or self._build(place)
                step(mask)
                place += 1
            self.executed[start:place] += issued
            steps += place - start + 1
            for trace in traces:
                trace.append((start, min(place + 1, stop)))
            if place >= stop or steps > self.limit:
                break
            self.executed[place] += issued
            following = self._flow(place, active)
            if following is None:
                return steps
            place = following
            if place >= stop:
                break
        self.pc[active] = place
        return steps

    def _per_block(self, active: Array) -> Array:
        warps = active.reshape(-1, WARP).any(1)
        return np.bincount(self.memory.block_of_warp, warps, self.executed.shape[1]).astype(np.int64)

    def _build(self, place: int) -> Step:
        i = self.code[place]
        if i.operation not in BUILDERS:
            raise UnknownInstruction(f"the emulator does not know {i.name}: {i}")
        step = BUILDERS[i.operation](i, self.state)
        if (guard := self.state.guard(i)) is not None:
            step = _guarded(step, guard)
        self.steps[place] = step
        return step

    def _taken(self, i: Instruction, active: Array) -> Array:
        """Return the active threads whose guard, and predicate operands, are true."""
        taken = active
        for name in [*(["!" * i.negated + i.guard] if i.guard else []), *filter(is_predicate, i.operands)]:
            taken = taken & self.state.predicate(name)()
        return taken

    def _flow(self, place: int, active: Array) -> int | None:
        """Execute a control instruction; return where all active threads go on, or None if they part or wait."""
        i = self.code[place]
        taken = self._taken(i, active)
        after = place + 1
        match i.operation:
            case "BRA":
                # BRA.DIV is taken by warps that have diverged, which the convergence barriers before it exclude.
                return after if i.has("DIV") else self._branch(active, taken, i.target, after)
            case "CALL" if i.has("REL"):
                return self._branch(active, taken, i.target, after)
            case "RET":
                return self._jump(i, active, taken, after, 0)
            case "BRX" | "BRXU":  # the table's entries are relative to the next instruction
                return self._jump(i, active, taken, after, SIZE * after)
            case "EXIT" | "KILL":
                if not taken.any():
                    return after
                self.status[taken] = DONE
                self.pc[active] = after
                return None
            case "BSSY":
                whole = self.state.whole_warps(None if active.all() else active)
                row = self.members[_number(i)]
                row[:] = active if whole is None else np.where(whole, active, row)
                return after
            case "BREAK":
                self.members[_number(i)] &= ~taken
                return after
            case "BSYNC":
                return self._meet(active, taken, self.members[_number(i)], CONVERGENCE, _number(i), after)
            case "WARPSYNC":
                everyone = np.ones(self.state.n, bool)
                return self._meet(active, taken, everyone, WARP_BARRIER, 0, after)
            case "BAR":
                return self._barrier(i, active, taken, after)
        raise UnknownInstruction(f"the emulator does not know {i.name}: {i}")

    def _branch(self, active: Array, taken: Array, target: int, after: int) -> int | None:
        count = int(taken.sum())
        if not count:
            return after
        if count == int(active.sum()):
            return target
        self.pc[active] = after
        self.pc[taken] = target
        return None

    def _jump(self, i: Instruction, active: Array, taken: Array, after: int, base: int) -> int | None:
        """Go on at an address in a register, plus the immediate, plus `base`."""
        register, offset = np.broadcast_to(self.state.bits(i.operands[0])(), self.state.n), int(i.operands[-1], 16)
        self.pc[active] = after
        self.pc[taken] = (register[taken].astype(np.int64) + offset + base) // SIZE
        found = np.unique(self.pc[active])
        return int(found[0]) if len(found) == 1 else None

    def _meet(self, active: Array, taken: Array, members: Array, status: int, which: int, after: int) -> int | None:
        """Wait for the other members in each thread's warp; go on at once if there are none."""
        if not taken.any():
            return after
        absent = members & ~active & (self.status != DONE)
        if (taken == active).all():
            if not absent.any():
                return after
            if not absent.reshape(-1, WARP)[active.reshape(-1, WARP).any(1)].any():
                return after
        self.pc[active] = after
        self.status[taken] = status
        self.waits[taken] = which
        return None

    def _barrier(self, i: Instruction, active: Array, taken: Array, after: int) -> int | None:
        if i.has("ARV") or i.has("RED") or "R" in i.operands[0] or len([o for o in i.operands if "0x" in o]) > 1:
            raise UnknownInstruction(f"the emulator does not know this barrier: {i}")
        if not taken.any():
            return after
        if taken.all():
            return after
        self.pc[active] = after
        self.status[taken] = BARRIER
        self.waits[taken] = int(i.operands[0], 16)
        return None

    def _release(self) -> None:
        """Let threads go on whose barrier is complete; there is no runnable thread."""
        live = self.status != DONE
        free = np.zeros(self.state.n, bool)
        for which in range(16):
            for status, rows in ((CONVERGENCE, WARP), (WARP_BARRIER, WARP), (BARRIER, self.state.threads.per_block)):
                waiting = (self.status == status) & (self.waits == which)
                if waiting.any():
                    needed = live & self.members[which] if status == CONVERGENCE else live
                    complete = ~(needed & ~waiting).reshape(-1, rows).any(1)
                    free |= waiting & np.repeat(complete, rows)
        if not free.any():
            places = ", ".join(str(self.code[p - 1]) for p in np.unique(self.pc[live])[:4])
            raise RuntimeError(f"deadlock: threads wait at {places}")
        self.status[free] = RUN


def _number(i: Instruction) -> int:
    return int(i.operands[0].removeprefix("B"))


def _guarded(step: Step, guard: Callable[[], Array]) -> Step:
    def guarded(mask: Mask) -> None:
        step(np.array(guard()) if mask is None else mask & guard())

    return guarded
