"""Loops of a kernel, and the integer divisions in them, from its machine code."""

from __future__ import annotations

from dataclasses import dataclass

from tools.machine.sass import Instruction


@dataclass(frozen=True)
class Loop:
    """A loop from instruction ``first`` to ``last``, inside ``depth`` other loops."""

    first: int
    last: int
    depth: int
    divides: bool  # has an integer division by a number unknown to the compiler


# The operations that these functions look at.
OPERATIONS = ("BRA", "CALL", "F2I", "I2F", "RET")


def loops(code: list[Instruction]) -> list[Loop]:
    """Return the loops of a function, in the order of their first instruction: the spans of branches backward."""
    spans = sorted((i.target, i.place) for i in code if i.operation == "BRA" and i.target < i.place)
    divisions = set(integer_divisions(code))
    found = []
    for first, last in spans:
        depth = sum(f <= first and last <= e and (f, e) != (first, last) for f, e in spans)
        found.append(Loop(first, last, depth, any(first <= n <= last for n in divisions)))
    return found


def integer_divisions(code: list[Instruction]) -> list[int]:
    """Return where integers are divided: by I2F, MUFU.RCP and F2I, or by a call of the 64-bit division."""
    ends = [i for i in code if i.operation == "F2I" and (i.has("U32") or i.has("U64")) and i.has("TRUNC")]
    places = [i.place for i in ends]
    return places + [i.place for i in code if i.operation == "CALL" and _divides(code, i.target)]


def _divides(code: list[Instruction], begin: int) -> bool:
    """Return whether a function within the kernel divides 64-bit integers; others are slow paths of float32."""
    for i in code:
        if i.place < begin:
            continue
        if i.operation == "I2F" and (i.has("U64") or i.has("S64")):
            return True
        if i.operation == "RET":
            return False
    return False


# Below this many instructions per division, dividing is a notable part of a loop.
FREQUENT = 200


def frequent_divisions(code: list[Instruction]) -> list[Loop]:
    """Return the loops with an integer division per `FREQUENT` instructions or more, not counting loops inside them."""
    every, divisions = loops(code), integer_divisions(code)

    def innermost(place: int) -> Loop | None:
        around = [loop for loop in every if loop.first <= place <= loop.last]
        return min(around, key=lambda loop: loop.last - loop.first, default=None)

    where = [loop for loop in map(innermost, divisions) if loop is not None]
    return [loop for loop in dict.fromkeys(where) if loop.last + 1 - loop.first < FREQUENT * where.count(loop)]
