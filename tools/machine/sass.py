"""Machine code as text: the output of ``cuobjdump -sass``, split into functions and instructions."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

_FUNCTION = re.compile(r"^\s*Function : (\S+)", re.MULTILINE)
_INSTRUCTION = re.compile(
    r"/\*([0-9a-f]{4,6})\*/\s+(?:@(!?)(U?P\w+)\s+)?([A-Z][A-Z0-9_.x]*)\s*([^;]*);"
    r"(?:\s*/\* 0x[0-9a-f]{16} \*/\s*/\* (0x[0-9a-f]{16}) \*/)?"
)
SIZE = 16  # bytes per instruction since sm_70


class UnknownInstruction(NotImplementedError):
    """The emulator does not define this instruction."""


class Control(NamedTuple):
    """An instruction's control code.

    Attributes:
        stall: cycles until the warp's next instruction may issue.
        writes, reads: scoreboard that it releases when its result is written, or its operands are read; 7 for none.
        waits: bit per scoreboard that it waits for.
    """

    stall: int = 1
    writes: int = 7
    reads: int = 7
    waits: int = 0


NO_CONTROL = Control()


@dataclass(frozen=True)
class Instruction:
    """One instruction: ``IADD3.X`` is operation ``IADD3`` with modifier ``X``."""

    address: int
    negated: bool  # the guard
    guard: str  # "P0", "UP1" or "" for none
    operation: str
    modifiers: tuple[str, ...]
    operands: tuple[str, ...]
    control: Control = NO_CONTROL

    def __str__(self) -> str:
        guard = f"@{'!' * self.negated}{self.guard} " if self.guard else ""
        return f"{self.address:#06x}: {guard}{self.name} {', '.join(self.operands)}".rstrip()

    @cached_property
    def name(self) -> str:
        return ".".join((self.operation, *self.modifiers))

    def has(self, modifier: str) -> bool:
        return modifier in self.modifiers

    @property
    def place(self) -> int:
        """Index in its function."""
        return self.address // SIZE

    @property
    def target(self) -> int:
        """Index of the instruction that a branch or a convergence barrier names."""
        return int(self.operands[-1], 16) // SIZE


@functools.lru_cache(256)
def parse(text: str) -> list[Instruction]:
    """Return the instructions of one function; each text is read once."""
    found = _parse(text)
    if [i.address for i in found] != [SIZE * n for n in range(len(found))]:
        raise ValueError("expected the text of one function, as `cuobjdump -sass` prints it")
    return found


def parse_only(text: str, operations: Sequence[str]) -> list[Instruction]:
    """Return the instructions of one function with these operations, ten times faster than all of them."""
    lines = [line for line in text.splitlines() if any(operation in line for operation in operations)]
    return [i for i in _parse("\n".join(lines)) if i.operation in operations]


def _parse(text: str) -> list[Instruction]:
    found = []
    for address, negated, guard, name, rest, encoding in _INSTRUCTION.findall(text):
        operation, *modifiers = name.split(".")
        # "RET.REL.NODEC R4 0x0" and "BRX R4 -0x10" have no comma.
        listed = re.sub(r"(?<!,) (-?0x)", r", \1", rest)
        operands = [o.strip().replace(".reuse", "") for o in listed.split(",")]
        found.append(
            Instruction(
                int(address, 16),
                bool(negated),
                "" if guard in ("PT", "UPT") and not negated else guard,
                operation,
                tuple(modifiers),
                tuple(o for o in operands if o),
                _control(int(encoding, 16) >> 41) if encoding else NO_CONTROL,
            )
        )
    return found


def _control(bits: int) -> Control:
    """Decode bits 105 to 121 of an instruction; bit 4 of them is a hint to the scheduler."""
    return Control(bits & 15, bits >> 5 & 7, bits >> 8 & 7, bits >> 11 & 63)


def functions(dump: str) -> dict[str, str]:
    """Split the output of ``cuobjdump -sass`` into functions by mangled name."""
    starts = list(_FUNCTION.finditer(dump))
    ends = [m.start() for m in starts[1:]] + [len(dump)]
    return {m[1]: dump[m.end() : end] for m, end in zip(starts, ends, strict=True)}


def tool() -> str | None:
    """Return the cuobjdump of a CUDA toolkit, or that of Triton."""
    if found := shutil.which("cuobjdump"):
        return found
    try:
        from triton import __file__ as triton
    except ImportError:
        return None
    path = Path(triton).parent / "backends/nvidia/bin/cuobjdump"
    return str(path) if path.is_file() else None


def dump() -> list[str]:
    """Return the command of cuobjdump."""
    found = tool()
    if found is None:
        raise RuntimeError("there is no cuobjdump: install a CUDA toolkit or Triton")
    return [found]


def disassemble(path: str | Path, *names: str) -> dict[str, str]:
    """Return the functions of a cubin with these mangled names, or all, by mangled name."""
    only = ["-fun", ",".join(names)] if names else []
    command = [*dump(), "-sass", *only, str(path)]
    return functions(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
