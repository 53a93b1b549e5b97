"""Registers of the sampled blocks' threads, and access to them by the names in machine code.

All threads of all sampled blocks are one vector: register R4 is an array with a value per thread. A mask says which
threads execute an instruction, None that all do.
"""

from __future__ import annotations

import functools
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tools.machine.sass import Instruction, UnknownInstruction

Array = Any  # a value per thread, or a scalar that stands for all of them
Mask = Any  # bool per thread, or None
WARP = 32
PARAMETERS = 0x210  # offset of the parameters in constant bank 0 on sm_90
_REGISTER = re.compile(r"(U?R)(\d+|Z)$")
_CONSTANT = re.compile(r"c\[(0x[0-9a-f]+)\]\[(.+)\]$")


@dataclass(frozen=True)
class Threads:
    """Position of every emulated thread: in its block, and its block in the grid."""

    blocks: int  # emulated
    threads: tuple[int, int, int]  # per block
    grid: tuple[int, int, int]
    index: Array  # linear block index, by emulated block

    @property
    def per_block(self) -> int:
        return self.threads[0] * self.threads[1] * self.threads[2]

    def special(self, name: str) -> Array:
        """Return the value of a special register."""
        within = np.tile(np.arange(self.per_block), self.blocks)
        block = np.repeat(self.index, self.per_block)
        x, y, _ = self.threads
        gx, gy, _ = self.grid
        values = {
            "SR_TID.X": within % x,
            "SR_TID.Y": within // x % y,
            "SR_TID.Z": within // (x * y),
            "SR_CTAID.X": block % gx,
            "SR_CTAID.Y": block // gx % gy,
            "SR_CTAID.Z": block // (gx * gy),
            "SR_LANEID": within % WARP,
        }
        if name in values:
            return values[name].astype(np.uint32)
        if name in ("SR_CgaCtaId", "SRZ", "SR_CLOCKLO", "SR_CLOCKHI", "SR_SMEMBASE"):
            return np.zeros(within.shape, np.uint32)
        raise UnknownInstruction(f"special register {name}")


@functools.cache
def _register(name: str) -> tuple[bool, int] | None:
    """Return whether a register is uniform, and its index, -1 for RZ; or None if this is no register."""
    match = _REGISTER.match(name)
    return match and (match[1] == "UR", -1 if match[2] == "Z" else int(match[2]))


class State:
    """Registers, predicates and constants; ``memory`` is the :class:`tools.machine.memory.Memory` beside them."""

    memory: Any

    def __init__(self, threads: Threads, parameters: bytes, constants: dict[int, bytes] | None = None):
        n = threads.blocks * threads.per_block
        if threads.per_block % WARP:
            raise ValueError(f"a block has {threads.per_block} threads; expected whole warps")
        self.threads, self.n, self.warps = threads, n, n // WARP
        self.registers = np.zeros((256, n), np.uint32)
        self.uniform = np.zeros((64, n), np.uint32)  # equal within a warp
        self.predicates = np.zeros((7, n), bool)
        self.uniform_predicates = np.zeros((7, n), bool)
        bank = bytearray(PARAMETERS + len(parameters) + 16)
        struct.pack_into("<6I", bank, 0, *threads.threads, *threads.grid)
        bank[PARAMETERS : PARAMETERS + len(parameters)] = parameters
        banks = {0: bytes(bank), **(constants or {})}
        self.constants = {number: np.frombuffer(data, np.uint8) for number, data in banks.items()}
        self._mask: Mask = None
        self._whole: Mask = None
        self.block = np.repeat(np.arange(threads.blocks), threads.per_block)  # index among the emulated blocks

    # A mask over the whole warps in which any thread is active: for uniform registers.
    def whole_warps(self, mask: Mask) -> Mask:
        if mask is None:
            return None
        if mask is not self._mask:
            self._mask, self._whole = mask, np.repeat(mask.reshape(-1, WARP).any(1), WARP)
        return self._whole

    def row(self, name: str, offset: int = 0) -> Array | np.uint32:
        """Return a register's values, or those of the register `offset` after it."""
        found = _register(name)
        if found is None:
            raise UnknownInstruction(f"operand {name!r}")
        is_uniform, index = found
        if index < 0:
            return np.uint32(0)
        return (self.uniform if is_uniform else self.registers)[index + offset]

    def put(self, name: str, offset: int = 0) -> Callable[[Array, Mask], None]:
        """Return the function that writes a register, or the register `offset` after it."""
        row = self.row(name, offset)
        if not isinstance(row, np.ndarray):
            return lambda value, mask: None
        if name.startswith("U"):
            return lambda value, mask: _assign(row, value, self.whole_warps(mask))
        return lambda value, mask: _assign(row, value, mask)

    def predicate(self, name: str) -> Callable[[], Array | np.bool_]:
        """Return the function that reads a predicate, such as "P0" or "!UPT"."""
        plain = name.removeprefix("!")
        if plain in ("PT", "UPT"):
            constant = np.bool_(plain == name)
            return lambda: constant
        row = self._predicate_row(plain)
        return (lambda: row) if plain == name else (lambda: ~row)

    def put_predicate(self, name: str) -> Callable[[Array, Mask], None]:
        if name in ("PT", "UPT"):
            return lambda value, mask: None
        row = self._predicate_row(name)
        if name.startswith("U"):
            return lambda value, mask: _assign(row, value, self.whole_warps(mask))
        return lambda value, mask: _assign(row, value, mask)

    def _predicate_row(self, name: str) -> Array:
        table = self.uniform_predicates if name.startswith("U") else self.predicates
        return table[int(name[-1])]

    def constant(self, bank: int, offset: Array | int, dtype: type = np.uint32) -> Array:
        """Return values of a constant bank at these byte offsets."""
        if bank not in self.constants:
            raise UnknownInstruction(f"constant bank {bank}: the kernel's cubin has none")
        data, size = self.constants[bank], np.dtype(dtype).itemsize
        # Threads whose result is not used may be anywhere.
        places = np.clip(np.atleast_1d(np.asarray(offset, np.int64)), 0, len(data) - size)
        return np.ascontiguousarray(data[places[:, None] + np.arange(size)]).view(dtype)[:, 0]

    def bits(self, operand: str, offset: int = 0) -> Callable[[], Array | np.uint32]:
        """Return the function that reads a 32-bit operand: register (also ``-R1``, ``~R1``), immediate or constant."""
        if operand[0] == "-" and operand[1:2] in ("R", "U", "c"):
            of = self.bits(operand[1:], offset)
            return lambda: np.uint32(0) - of()
        if operand[0] == "~":
            inverted = self.bits(operand[1:], offset)
            return lambda: ~inverted()
        if match := _CONSTANT.match(operand):
            if "R" in match[2]:
                raise UnknownInstruction(f"constant {operand}")
            value = self.constant(int(match[1], 16), int(match[2], 16) + 4 * offset)[0]
            return lambda: value
        if _register(operand):
            row = self.row(operand, offset)
            return lambda: row
        number = immediate(operand)
        if offset:  # the upper half of a sign-extended immediate
            number = np.uint32(0xFFFFFFFF if operand.startswith("-") else 0)
        return lambda: number

    def pair(self, operand: str) -> Callable[[], Array]:
        """Return the function that reads a 64-bit operand, as uint64."""
        negative = operand.startswith("-") and operand[1:2] in ("R", "U")
        plain = operand[1:] if negative else operand
        low, high = self.bits(plain), self.bits(plain, 1)

        def read() -> Array:
            value = (np.asarray(high()).astype(np.uint64) << np.uint64(32)) | np.asarray(low()).astype(np.uint64)
            return np.uint64(0) - value if negative else value

        return read

    def put_pair(self, name: str) -> Callable[[Array, Mask], None]:
        low, high = self.put(name), self.put(name, 1)

        def write(value: Array, mask: Mask) -> None:
            low((value & np.uint64(0xFFFFFFFF)).astype(np.uint32), mask)
            high((value >> np.uint64(32)).astype(np.uint32), mask)

        return write

    def guard(self, instruction: Instruction) -> Callable[[], Array | np.bool_] | None:
        if not instruction.guard:
            return None
        return self.predicate("!" * instruction.negated + instruction.guard)


def _assign(row: Array, value: Array, mask: Mask) -> None:
    if mask is None:
        row[:] = value
    else:
        np.copyto(row, value, where=mask)


_FLOATS = {"+INF": np.inf, "-INF": -np.inf, "+QNAN": np.nan, "-QNAN": -np.nan, "QNAN": np.nan, "INF": np.inf}


def number(text: str) -> float:
    """Return a floating-point immediate."""
    return _FLOATS[text] if text in _FLOATS else float(text)


def immediate(text: str) -> np.uint32:
    """Return an immediate's bits: an integer in hexadecimal, or a float32."""
    if "0x" in text:
        return np.uint32(int(text, 16) & 0xFFFFFFFF)
    try:
        return np.float32(number(text)).view(np.uint32)
    except ValueError:
        raise UnknownInstruction(f"operand {text!r}") from None
