"""Instructions that access memory: global, shared, constant."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from tools.machine.integer import U32, Step, builder, is_predicate
from tools.machine.sass import Instruction, UnknownInstruction
from tools.machine.state import Array, Mask, State

_ADDRESS = re.compile(r"\[([^\]]*)\]$")


def address(s: State, operand: str) -> Callable[[], Array]:
    """Return the function that computes the addresses of an operand such as ``desc[UR6][R2.64+0x10]``."""
    match = _ADDRESS.search(operand)
    if not match:
        raise UnknownInstruction(f"address {operand!r}")
    reads: list[Callable[[], Array]] = []
    offset = 0
    for term in match[1].replace("+-", "+@").split("+"):
        text = term.replace("@", "-")
        name, _, kind = text.partition(".")
        if name.lstrip("-").startswith("0x"):
            offset += int(name, 16)
        elif kind in ("64", "U32", "", "X4", "X8", "X16") and name.startswith(("R", "U")):
            read = s.pair(name) if kind == "64" else s.bits(name)
            reads.append(_scaled(read, int(kind[1:])) if kind.startswith("X") else read)
        else:
            raise UnknownInstruction(f"address {operand!r}")
    is_long = ".64" in match[1]

    def compute() -> Array:
        total = np.full(s.n, offset, np.int64)
        for read in reads:
            value = np.asarray(read())
            total += value.astype(np.int64) if is_long else value.astype(np.uint32).view(np.int32)
        return total

    return compute


def _scaled(read: Callable[[], Array], scale: int) -> Callable[[], Array]:
    return lambda: read() * U32(scale)


_SIZES = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}


def size_of(i: Instruction) -> int:
    return next((_SIZES[m] for m in i.modifiers if m in _SIZES), 4)


def _writer(i: Instruction, s: State, name: str) -> Callable[[Array, Mask], None]:
    """Return the function that puts loaded bytes [active threads, size] into registers."""
    size = size_of(i)
    narrow: Any
    if size >= 4:
        rows = [s.row(name, n) for n in range(size // 4)]
        narrow = np.dtype(np.uint32)
    else:
        rows = [s.row(name)]
        narrow = np.dtype(
            {"U8": np.uint8, "S8": np.int8, "U16": np.uint16, "S16": np.int16}[
                next(m for m in i.modifiers if m in _SIZES)
            ]
        )

    def write(loaded: Array, mask: Mask) -> None:
        values = np.ascontiguousarray(loaded).view(narrow)
        for n, row in enumerate(rows):
            if isinstance(row, np.ndarray):
                column = values[:, n]
                column = column if narrow == np.uint32 else column.astype(np.int32).view(np.uint32)
                if mask is None:
                    row[:] = column
                else:
                    row[mask] = column

    return write


def _reader(i: Instruction, s: State, name: str) -> Callable[[Mask], Array]:
    """Return the function that gets the bytes [active threads, size] to store."""
    size = size_of(i)
    rows = [s.row(name, n) for n in range(max(size // 4, 1))]

    def read(mask: Mask) -> Array:
        columns = [np.broadcast_to(row, s.n) if mask is None else np.broadcast_to(row, s.n)[mask] for row in rows]
        return np.stack(columns, 1).view(np.uint8)[:, :size]

    return read


@builder("LDG", "LD")
def load_global(i: Instruction, s: State) -> Step:
    where, write, size, at = address(s, i.operands[-1]), _writer(i, s, i.operands[0]), size_of(i), i.address // 16
    extra = [o for o in i.operands[1:-1] if is_predicate(o)]
    if extra and extra != ["PT"]:
        raise UnknownInstruction(str(i))
    strong = any(i.has(m) for m in ("STRONG", "VOLATILE", "MMIO"))
    counter = [0]

    def step(mask: Mask) -> None:
        places, memory = where(), s.memory
        memory.watch(places, mask, memory.active, through=strong)
        if mask is not None and not mask.any():
            return
        memory.traffic.touch(at, "load", places, mask, memory.block_of_warp)
        loaded = memory.load_global(places, size, mask)
        if strong and memory.buffers is None:
            # A flag that another block sets: each load returns another value, so that every wait ends.
            counter[0] += 1
            value = np.uint32((0x7FFFFFFF, 0xFFFFFFFF, 0x80000000, 0)[counter[0] % 4])
            loaded = np.tile(np.array([value]).view(np.uint8), (len(loaded), 4))[:, :size]
        write(loaded, mask)

    return step


@builder("STG", "ST")
def store_global(i: Instruction, s: State) -> Step:
    where, read, at = address(s, i.operands[0]), _reader(i, s, i.operands[1]), i.address // 16

    def step(mask: Mask) -> None:
        if mask is not None and not mask.any():
            return
        places, memory = where(), s.memory
        memory.traffic.touch(at, "store", places, mask, memory.block_of_warp)
        memory.store_global(places, read(mask), mask)

    return step


@builder("LDS")
def load_shared(i: Instruction, s: State) -> Step:
    where, write, size, at = address(s, i.operands[1]), _writer(i, s, i.operands[0]), size_of(i), i.address // 16

    def step(mask: Mask) -> None:
        if mask is not None and not mask.any():
            return
        places, memory = where(), s.memory
        memory.traffic.shared(at, places, size, mask, memory.block_of_warp)
        write(memory.load_shared(places, size, mask), mask)

    return step


@builder("STS")
def store_shared(i: Instruction, s: State) -> Step:
    where, read, size, at = address(s, i.operands[0]), _reader(i, s, i.operands[1]), size_of(i), i.address // 16

    def step(mask: Mask) -> None:
        if mask is not None and not mask.any():
            return
        places, memory = where(), s.memory
        memory.traffic.shared(at, places, size, mask, memory.block_of_warp)
        memory.store_shared(places, read(mask), mask)

    return step


@builder("LDSM", "STSM")
def matrices(i: Instruction, s: State) -> Step:
    """Eight rows of 16 bytes per matrix: their bank conflicts count, their values are zeros."""
    loads = i.operation == "LDSM"
    where, at = address(s, i.operands[1 if loads else 0]), i.address // 16
    count = next((int(m) for m in i.modifiers if m in ("2", "4")), 1)
    puts = [s.put(i.operands[0], n) for n in range(count)] if loads else []

    def step(mask: Mask) -> None:
        memory = s.memory
        memory.traffic.shared(at, where(), 16, mask, memory.block_of_warp, lanes=8 * count)
        for put in puts:
            put(np.uint32(0), mask)

    return step


@builder("LDGSTS")
def copy_async(i: Instruction, s: State) -> Step:
    """Copy from global to shared memory; zeros where the predicate, the last operand, is false."""
    to, source, *rest = i.operands
    into, where, size, at = address(s, to), address(s, source), size_of(i), i.address // 16
    valid = s.predicate(rest[0]) if rest else None
    kind = "bypass" if i.has("BYPASS") else "load"

    def step(mask: Mask) -> None:
        if mask is not None and not mask.any():
            return
        memory, places, targets = s.memory, where(), into()
        memory.traffic.shared(at, targets, size, mask, memory.block_of_warp)
        read = mask
        if valid is not None:
            read = np.broadcast_to(valid(), s.n) if mask is None else mask & valid()
        values = np.zeros((s.n, size), np.uint8)
        if read is None or read.any():
            memory.traffic.touch(at, kind, places, read, memory.block_of_warp)
            loaded = memory.load_global(places, size, read)
            values[slice(None) if read is None else read] = loaded
        memory.store_shared(targets, values if mask is None else values[mask], mask)

    return step


@builder("CCTL")
def cache_control(i: Instruction, s: State) -> Step:
    """``CCTL.IVALL`` empties L1."""
    return lambda mask: s.memory.forget() if i.has("IVALL") else None


@builder("LDC", "ULDC")
def load_constant(i: Instruction, s: State) -> Step:
    to, source = i.operands
    bank = int(source[2 : source.index("]")], 16)
    size = size_of(i)
    where = address(s, source)
    dtypes = {"U8": np.uint8, "S8": np.int8, "U16": np.uint16, "S16": np.int16}
    dtype = next((dtypes[m] for m in i.modifiers if m in dtypes), np.uint32)
    puts = [s.put(to, n) for n in range(max(size // 4, 1))]
    if "R" not in source:
        offset = int(source.split("[")[2].rstrip("]"), 16)
        values = [s.constant(bank, offset + 4 * n, dtype)[0] for n in range(len(puts))]
        fixed = [np.int32(v).view(np.uint32) if dtype is not np.uint32 else v for v in values]

        def constant(mask: Mask) -> None:
            for put, value in zip(puts, fixed, strict=True):
                put(value, mask)

        return constant

    def step(mask: Mask) -> None:
        places = where()
        for n, put in enumerate(puts):
            values = s.constant(bank, places + 4 * n, dtype)
            put(values if dtype is np.uint32 else values.astype(np.int32).view(np.uint32), mask)

    return step


@builder("ATOMG", "ATOM", "RED", "REDG", "ATOMS")
def atomic(i: Instruction, s: State) -> Step:
    """Counted as one access; a returned value is 0."""
    target = next(o for o in i.operands if "[" in o)
    where, at = address(s, target), i.address // 16
    puts = [s.put(o) for o in i.operands[: i.operands.index(target)] if not is_predicate(o)]

    def step(mask: Mask) -> None:
        places, memory = where(), s.memory
        if i.operation in ("ATOMG", "ATOM"):
            memory.watch(places, mask, memory.active, through=True)
        if mask is not None and not mask.any():
            return
        if i.operation == "ATOMS":
            memory.traffic.shared(at, places, 4, mask, memory.block_of_warp)
        else:
            memory.traffic.touch(at, "store", places, mask, memory.block_of_warp)
        for put in puts:
            put(np.uint32(0), mask)

    return step
