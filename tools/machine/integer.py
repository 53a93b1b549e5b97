"""Integer, logic and predicate instructions. A builder turns an instruction into a function of the mask."""

from __future__ import annotations

import operator
from collections.abc import Callable

import numpy as np

from tools.machine.sass import Instruction
from tools.machine.state import Array, Mask, State

Step = Callable[[Mask], None]
Builder = Callable[[Instruction, State], Step]
BUILDERS: dict[str, Builder] = {}

U32, U64, I32, I64 = np.uint32, np.uint64, np.int32, np.int64
WORD = 0xFFFFFFFF


def builder(*operations: str) -> Callable[[Builder], Builder]:
    def register(build: Builder) -> Builder:
        BUILDERS.update(dict.fromkeys(operations, build))
        return build

    return register


def is_predicate(operand: str) -> bool:
    plain = operand.removeprefix("!")
    return plain in ("PT", "UPT") or (plain[:-1] in ("P", "UP") and plain[-1].isdigit())


def split(i: Instruction) -> tuple[str, list[str], list[str]]:
    """Return destination, predicate destinations, and sources of an instruction that writes a register."""
    rest = list(i.operands[1:])
    outputs = []
    while rest and is_predicate(rest[0]):
        outputs.append(rest.pop(0))
    return i.operands[0], outputs, rest


def as64(value: Array) -> Array:
    return np.asarray(value).astype(U64)


def low(value: Array) -> Array:
    return (value & U64(WORD)).astype(U32)


def signed(value: Array) -> Array:
    return np.asarray(value, U32).view(I32)


def addend(s: State, operand: str) -> Callable[[], Array]:
    """Return the function that reads an operand of a sum with carry: ``-R1`` is ``~R1 + 1``, in more than 32 bits."""
    if operand[0] == "-" and operand[1:2] in ("R", "U", "c"):
        plain = s.bits(operand[1:])
        return lambda: U64(1 << 32) - as64(plain())
    read = s.bits(operand)
    return lambda: as64(read())


@builder("IADD3", "UIADD3", "VIADD", "IADD")
def add(i: Instruction, s: State) -> Step:
    to, carries, sources = split(i)
    put = s.put(to)
    inputs = [s.predicate(o) for o in sources if is_predicate(o)]
    terms = [o for o in sources if not is_predicate(o)]
    if not carries and not inputs:
        reads = [s.bits(o) for o in terms if o not in ("RZ", "URZ")] or [s.bits("RZ")]
        if len(reads) == 1:
            one = reads[0]
            return lambda mask: put(one(), mask)
        if len(reads) == 2:
            a, b = reads
            return lambda mask: put(a() + b(), mask)
        a, b, c = reads
        return lambda mask: put(a() + b() + c(), mask)
    wide = [addend(s, o) for o in terms]
    outputs = [s.put_predicate(o) for o in carries]

    def step(mask: Mask) -> None:
        total = sum((read() for read in wide), start=np.zeros(s.n, U64))
        for read in inputs:
            total = total + as64(read())
        put(low(total), mask)
        for n, output in enumerate(outputs, 1):
            output(total >= U64(n << 32), mask)

    return step


@builder("IMAD", "UIMAD")
def multiply_add(i: Instruction, s: State) -> Step:
    to, carries, (x, y, z, *more) = split(i)
    unsigned = i.has("U32")
    if i.has("WIDE") or i.has("HI"):
        return _wide(i, s, to, carries, x, y, z, more, unsigned)
    put = s.put(to)
    a, b, c = s.bits(x), s.bits(y), s.bits(z)
    if more:  # IMAD.X
        carry = s.predicate(more[0])
        return lambda mask: put(np.asarray(a() * b() + c() + np.asarray(carry()).astype(U32), U32), mask)
    if x in ("RZ", "URZ") or y in ("RZ", "URZ"):
        return lambda mask: put(c(), mask)
    if y == "0x1":
        return lambda mask: put(a() + c(), mask)
    if z in ("RZ", "URZ"):
        return lambda mask: put(a() * b(), mask)
    return lambda mask: put(a() * b() + c(), mask)


def _wide(i, s, to, carries, x, y, z, more, unsigned) -> Step:
    a, b, c = s.bits(x), s.bits(y), s.pair(z)
    inputs = [s.predicate(o) for o in more]
    outputs = [s.put_predicate(o) for o in carries]
    put = s.put(to) if i.has("HI") else s.put_pair(to)

    def step(mask: Mask) -> None:
        if unsigned:
            product = as64(a()) * as64(b())
        else:
            product = (signed(a()).astype(I64) * signed(b()).astype(I64)).view(U64)
        addition = as64(c())
        total = product + addition
        carry = total < addition
        for read in inputs:
            total = total + as64(read())
        put((total >> U64(32)).astype(U32) if i.has("HI") else total, mask)
        for output in outputs:
            output(carry, mask)

    return step


@builder("LEA", "ULEA")
def load_effective_address(i: Instruction, s: State) -> Step:
    to, carries, sources = split(i)
    carry_in = s.predicate(sources.pop()) if i.has("X") else None
    *terms, shift_text = sources
    shift = U64(int(shift_text, 16))
    put = s.put(to)
    outputs = [s.put_predicate(o) for o in carries]
    a, b = s.bits(terms[0]), addend(s, terms[1]) if not i.has("X") else s.bits(terms[1])
    c = s.bits(terms[2]) if len(terms) > 2 else None

    def step(mask: Mask) -> None:
        first = as64(a())
        if i.has("SX32"):
            first = signed(a()).astype(I64).view(U64)
        elif c is not None:
            first = first | as64(c()) << U64(32)
        shifted = first << shift
        total = (shifted >> U64(32) if i.has("HI") else shifted & U64(WORD)) + as64(b())
        if carry_in is not None:
            total = total + as64(carry_in())
        put(low(total), mask)
        for output in outputs:
            output(total > U64(WORD), mask)

    return step


@builder("SHF", "USHF")
def funnel_shift(i: Instruction, s: State) -> Step:
    to, _, (x, y, z) = split(i)
    put = s.put(to)
    a, by, c = s.bits(x), s.bits(y), s.bits(z)
    left, high = i.has("L"), i.has("HI")
    is_signed = i.has("S32") or i.has("S64")
    # U32 and S32 on the high word alone shift at most 32 places, and 64-bit types 64; W wraps.
    limit = 64 if i.has("U64") or i.has("S64") else 32

    def count() -> Array:
        return as64(by() & U32(limit - 1)) if i.has("W") else np.minimum(as64(by()), U64(limit))

    def step(mask: Mask) -> None:
        value, places = as64(c()) << U64(32) | as64(a()), count()
        if left:
            shifted = np.where(places > U64(63), U64(0), value << np.minimum(places, U64(63)))
        elif is_signed:
            shifted = (np.asarray(value).view(I64) >> np.minimum(places, U64(63)).astype(I64)).view(U64)
        else:
            shifted = np.where(places > U64(63), U64(0), value >> np.minimum(places, U64(63)))
        put((shifted >> U64(32)).astype(U32) if high else low(shifted), mask)

    return step


COMPARE: dict[str, Callable] = {
    "EQ": operator.eq,
    "NE": operator.ne,
    "LT": operator.lt,
    "LE": operator.le,
    "GT": operator.gt,
    "GE": operator.ge,
}
COMBINE: dict[str, Callable] = {"AND": np.logical_and, "OR": np.logical_or, "XOR": np.logical_xor}


@builder("ISETP", "UISETP")
def compare(i: Instruction, s: State) -> Step:
    first, second, x, y, other, *low_part = i.operands
    condition, combine = COMPARE[i.modifiers[0]], next(COMBINE[m] for m in i.modifiers if m in COMBINE)
    a, b, with_ = s.bits(x), s.bits(y), s.predicate(other)
    put, put_second = s.put_predicate(first), s.put_predicate(second)
    below = s.predicate(low_part[0]) if low_part else None
    unsigned = i.has("U32")
    name = i.modifiers[0]

    def step(mask: Mask) -> None:
        left, right = a(), b()
        if not unsigned:
            left, right = signed(left), signed(right)
        found = condition(left, right)
        if below is not None:  # the high words of a 64-bit comparison
            if name == "EQ":
                found = found & below()
            elif name == "NE":
                found = found | below()
            else:
                found = np.where(left == right, below(), found)
        put(combine(found, with_()), mask)
        if second not in ("PT", "UPT"):
            put_second(combine(~found, with_()), mask)

    return step


def _table(lut: int, a: Array, b: Array, c: Array, ones: Array) -> Array:
    """Return the bitwise function of three inputs that a truth table defines."""
    simple = {
        0xC0: lambda: a & b,
        0x3C: lambda: a ^ b,
        0xFC: lambda: a | b,
        0x33: lambda: ~b,
        0x30: lambda: a & ~b,
        0xF8: lambda: a | b & c,
        0xFE: lambda: a | b | c,
        0x80: lambda: a & b & c,
        0x96: lambda: a ^ b ^ c,
    }
    if lut in simple:
        return simple[lut]()
    result = ones ^ ones
    for n in range(8):
        if lut >> n & 1:
            result = result | ((a if n & 4 else a ^ ones) & (b if n & 2 else b ^ ones) & (c if n & 1 else c ^ ones))
    return result


@builder("LOP3", "ULOP3")
def logic(i: Instruction, s: State) -> Step:
    operands = list(i.operands)
    flag = s.put_predicate(operands.pop(0)) if is_predicate(operands[0]) else None
    to, x, y, z, lut, other = operands
    put, a, b, c, with_ = s.put(to), s.bits(x), s.bits(y), s.bits(z), s.predicate(other)
    table = int(lut, 16)

    def step(mask: Mask) -> None:
        value = _table(table, a(), b(), c(), U32(WORD))
        put(value, mask)
        if flag is not None:
            flag((value != 0) | with_(), mask)

    return step


@builder("PLOP3", "UPLOP3")
def predicate_logic(i: Instruction, s: State) -> Step:
    first, second, x, y, z, lut, other = i.operands
    a, b, c = s.predicate(x), s.predicate(y), s.predicate(z)
    puts = [(s.put_predicate(first), int(lut, 16)), (s.put_predicate(second), int(other, 16))]

    def step(mask: Mask) -> None:
        values = [_table(table, a(), b(), c(), np.bool_(True)) for _, table in puts]
        for (put, _), value in zip(puts, values, strict=True):
            put(value, mask)

    return step


@builder("MOV", "UMOV")
def move(i: Instruction, s: State) -> Step:
    put, a = s.put(i.operands[0]), s.bits(i.operands[1])
    return lambda mask: put(a(), mask)


@builder("SEL", "USEL")
def select(i: Instruction, s: State) -> Step:
    to, x, y, p = i.operands
    put, a, b, which = s.put(to), s.bits(x), s.bits(y), s.predicate(p)
    return lambda mask: put(np.where(which(), a(), b()), mask)


@builder("IABS")
def absolute(i: Instruction, s: State) -> Step:
    put, a = s.put(i.operands[0]), s.bits(i.operands[1])
    return lambda mask: put(np.abs(signed(a())).view(U32), mask)


@builder("VIMNMX", "IMNMX", "VIADDMNMX", "VIMNMX3", "UIMNMX")
def minimum(i: Instruction, s: State) -> Step:
    to, *sources, p = i.operands
    put, reads, smallest = s.put(to), [s.bits(o) for o in sources], s.predicate(p)
    cast = (lambda v: np.asarray(v, U32)) if i.has("U32") else signed
    if i.has("U16x2") or i.has("S16x2"):
        return _minimum_of_pairs(put, reads, smallest, np.uint16 if i.has("U16x2") else np.int16)

    def step(mask: Mask) -> None:
        values = [read() for read in reads]
        if i.operation == "VIADDMNMX":
            values = [values[0] + values[1], values[2]]
        which, found = smallest(), cast(values[0])
        for value in values[1:]:
            found = np.where(which, np.minimum(found, cast(value)), np.maximum(found, cast(value)))
        if i.has("RELU"):
            found = np.maximum(found, 0)
        put(np.ascontiguousarray(found).view(U32), mask)

    return step


def _minimum_of_pairs(put, reads, smallest, half) -> Step:
    """The same for the two 16-bit numbers of a register."""

    def step(mask: Mask) -> None:
        parts = []
        for shift in (0, 16):
            a, b = ((np.asarray(read(), U32) >> U32(shift)).astype(np.uint16).view(half) for read in reads)
            found = np.where(smallest(), np.minimum(a, b), np.maximum(a, b))
            parts.append(np.ascontiguousarray(found).view(np.uint16).astype(U32) << U32(shift))
        put(parts[0] | parts[1], mask)

    return step


@builder("PRMT", "UPRMT")
def permute(i: Instruction, s: State) -> Step:
    to, x, selector, z = i.operands
    put, a, which, c = s.put(to), s.bits(x), s.bits(selector), s.bits(z)

    def step(mask: Mask) -> None:
        value = as64(c()) << U64(32) | as64(a())
        nibbles, result = as64(which()), U64(0)
        for n in range(4):
            nibble = nibbles >> U64(4 * n) & U64(15)
            byte = value >> (nibble & U64(7)) * U64(8) & U64(255)
            byte = np.where(nibble & U64(8), (byte >> U64(7)) * U64(255), byte)
            result = result | byte << U64(8 * n)
        put(low(result), mask)

    return step


@builder("P2R")
def predicates_to_register(i: Instruction, s: State) -> Step:
    to, _, base, bits = i.operands
    put, rest, which = s.put(to), s.bits(base), U32(int(bits, 16))

    def step(mask: Mask) -> None:
        weights = (U32(1) << np.arange(7, dtype=U32))[:, None]
        packed = (s.predicates * weights).sum(0, dtype=U32)
        put(packed & which | rest() & ~which, mask)

    return step


@builder("R2P")
def register_to_predicates(i: Instruction, s: State) -> Step:
    _, source, bits = i.operands
    read, which = s.bits(source), int(bits, 16)
    puts = [(n, s.put_predicate(f"P{n}")) for n in range(7) if which >> n & 1]

    def step(mask: Mask) -> None:
        value = read()
        for n, put in puts:
            put((value >> U32(n) & U32(1)).astype(bool), mask)

    return step


@builder("POPC", "UPOPC")
def population(i: Instruction, s: State) -> Step:
    put, a = s.put(i.operands[0]), s.bits(i.operands[1])
    return lambda mask: put(np.bitwise_count(np.asarray(a(), U32)).astype(U32), mask)


@builder("FLO", "UFLO")
def leading_one(i: Instruction, s: State) -> Step:
    put, a = s.put(i.operands[0]), s.bits(i.operands[-1])

    def step(mask: Mask) -> None:
        value = np.asarray(a(), U32)
        place = np.frexp(value.astype(np.float64))[1].astype(I64) - 1
        place = 31 - place if i.has("SH") else place
        put(np.where(value == 0, WORD, place).astype(U32), mask)

    return step


@builder("SGXT", "USGXT")
def sign_extend(i: Instruction, s: State) -> Step:
    to, x, bits = i.operands
    put, a, count = s.put(to), s.bits(x), s.bits(bits)

    def step(mask: Mask) -> None:
        places = U32(32) - np.minimum(count(), U32(32))
        value = np.asarray(a(), U32).astype(U64) << places.astype(U64) & U64(WORD)
        narrow = low(value)
        put(narrow >> places if i.has("U32") else (narrow.view(I32) >> places.astype(I32)).view(U32), mask)

    return step
