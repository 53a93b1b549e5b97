"""Instructions between the lanes of a warp, special registers, and those that compute nothing."""

from __future__ import annotations

from typing import Any

import numpy as np

from tools.machine.integer import Step, builder, is_predicate
from tools.machine.sass import Instruction
from tools.machine.state import WARP, Mask, State


@builder("S2R", "S2UR", "CS2R")
def special_register(i: Instruction, s: State) -> Step:
    values = s.threads.special(i.operands[1])
    puts = [s.put(i.operands[0], n) for n in range(2 if i.operation == "CS2R" and not i.has("32") else 1)]

    def step(mask: Mask) -> None:
        for put in puts:
            put(values, mask)

    return step


@builder("R2UR")
def to_uniform(i: Instruction, s: State) -> Step:
    """The value of each warp's first active lane."""
    put, read = s.put(i.operands[0]), s.bits(i.operands[-1])

    def step(mask: Mask) -> None:
        rows = np.broadcast_to(read(), s.n).reshape(-1, WARP)
        first = np.zeros(len(rows), np.int64) if mask is None else mask.reshape(-1, WARP).argmax(1)
        put(np.repeat(rows[np.arange(len(rows)), first], WARP), mask)

    return step


@builder("SHFL")
def shuffle(i: Instruction, s: State) -> Step:
    valid, to, source, lane, limit = i.operands
    put, put_valid, read = s.put(to), s.put_predicate(valid), s.bits(source)
    by, clamp = s.bits(lane), s.bits(limit)
    kind = i.modifiers[0]

    def step(mask: Mask) -> None:
        own = np.tile(np.arange(WARP), s.warps)
        b, c = (np.broadcast_to(np.asarray(v()), s.n).astype(np.int64) for v in (by, clamp))
        segment, most = c >> 8 & 31, c & 31
        top, bottom = own & segment | most & ~segment, own & segment
        if kind == "IDX":
            j = bottom | b & ~segment & 31
            inside = j <= top
        elif kind == "BFLY":
            j = own ^ b
            inside = j <= top
        elif kind == "UP":
            j = own - b
            inside = j >= top
        else:
            j = own + b
            inside = j <= top
        chosen = np.where(inside, j, own) & 31
        rows = np.broadcast_to(read(), s.n).reshape(-1, WARP)
        put(np.take_along_axis(rows, chosen.reshape(-1, WARP), 1).reshape(-1), mask)
        put_valid(inside, mask)

    return step


@builder("MOVM")
def transpose(i: Instruction, s: State) -> Step:
    """An 8x8 matrix of 16-bit values: a lane has two adjacent ones of row lane / 4."""
    put, read = s.put(i.operands[0]), s.bits(i.operands[1])

    def step(mask: Mask) -> None:
        rows = np.ascontiguousarray(np.broadcast_to(read(), s.n).astype(np.uint32)).view(np.uint16).reshape(-1, 8, 8)
        put(np.ascontiguousarray(rows.transpose(0, 2, 1)).reshape(-1).view(np.uint32), mask)

    return step


@builder("VOTE", "VOTEU")
def vote(i: Instruction, s: State) -> Step:
    outputs = [o for o in i.operands[:-1] if is_predicate(o)]
    registers = [o for o in i.operands[:-1] if not is_predicate(o)]
    puts, put_flags = [s.put(o) for o in registers], [s.put_predicate(o) for o in outputs]
    read = s.predicate(i.operands[-1])
    all_of = i.has("ALL")

    def step(mask: Mask) -> None:
        said = np.broadcast_to(read(), s.n)
        active = np.ones(s.n, bool) if mask is None else mask
        rows, on = (said & active).reshape(-1, WARP), active.reshape(-1, WARP)
        ballot = (rows * (np.uint32(1) << np.arange(WARP, dtype=np.uint32))).sum(1, dtype=np.uint32)
        found = (rows == on).all(1) if all_of else rows.any(1)
        for put in puts:
            put(np.repeat(ballot, WARP), mask)
        for put in put_flags:
            put(np.repeat(found, WARP), mask)

    return step


@builder("REDUX")
def reduce(i: Instruction, s: State) -> Step:
    functions: dict[str, Any] = {
        "MAX": np.max,
        "MIN": np.min,
        "SUM": np.sum,
        "OR": np.bitwise_or.reduce,
        "AND": np.bitwise_and.reduce,
    }
    name = next((m for m in i.modifiers if m in functions), "SUM")
    put, read = s.put(i.operands[0]), s.bits(i.operands[-1])

    def step(mask: Mask) -> None:
        rows = np.broadcast_to(read(), s.n).reshape(-1, WARP)
        rows = rows.view(np.int32) if i.has("S32") else rows
        put(np.repeat(functions[name](rows, axis=1).astype(rows.dtype).view(np.uint32), WARP), mask)

    return step


def nothing(i: Instruction, s: State) -> Step:
    return lambda mask: None


for _name in (
    "NOP", "ACQBULK", "PREEXIT", "LDGDEPBAR", "DEPBAR", "MEMBAR", "FENCE", "ERRBAR", "CGAERRBAR", "CCTLL", "YIELD",
    "ENDCOLLECTIVE", "WARPGROUP", "ARRIVES", "UCGABAR_ARV", "UCGABAR_WAIT", "NANOSLEEP", "PREFETCH",
):  # fmt: skip
    builder(_name)(nothing)
