"""Floating-point instructions and conversions. Tensor cores and packed 16-bit arithmetic yield zeros."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tools.machine.integer import COMBINE, I64, U32, U64, Step, as64, builder, is_predicate
from tools.machine.sass import Instruction, UnknownInstruction
from tools.machine.state import Array, Mask, State, number

F32, F64 = np.float32, np.float64
Read = Callable[[], Array]


def modified(operand: str) -> tuple[str, bool, bool]:
    """Return an operand without its sign and bars, whether it is negated, and whether its absolute value is taken."""
    negated = operand[0] == "-" and not operand[1:2].isdigit() and operand[1:4] not in ("INF", "QNA")
    plain = operand[1:] if negated else operand
    return plain.strip("|"), negated, plain.startswith("|")


def real(s: State, operand: str) -> Read:
    """Return the function that reads a float32 operand."""
    plain, negated, absolute = modified(operand)
    bits = s.bits(plain)

    def read() -> Array:
        value = np.asarray(bits(), U32).view(F32)
        value = np.abs(value) if absolute else value
        return -value if negated else value

    if not negated and not absolute:
        return lambda: np.asarray(bits(), U32).view(F32)
    return read


def double(s: State, operand: str) -> Read:
    """Return the function that reads a float64 operand: a pair of registers, or an immediate."""
    plain, negated, absolute = modified(operand)
    pair = s.pair(plain) if "R" in plain else None
    constant = F64(0 if pair else number(plain))

    def read() -> Array:
        value = np.asarray(pair()).view(F64) if pair else constant
        value = np.abs(value) if absolute else value
        return -value if negated else value

    return read


def _flush(value: Array) -> Array:
    return np.where(np.abs(value) < np.finfo(F32).tiny, np.copysign(F32(0), value), value)


def _rounded(exact: Array, i: Instruction) -> Array:
    """Round float64 to float32 by the instruction's rounding mode."""
    value = np.asarray(exact).astype(F32)
    wide = value.astype(F64)
    if i.has("RP"):
        value = np.where(wide < exact, np.nextafter(value, F32(np.inf)), value)
    elif i.has("RM"):
        value = np.where(wide > exact, np.nextafter(value, F32(-np.inf)), value)
    elif i.has("RZ"):
        value = np.where(np.abs(wide) > np.abs(exact), np.nextafter(value, F32(0)), value)
    return value


def _is_plain(i: Instruction) -> bool:
    return not any(i.has(m) for m in ("RP", "RM", "RZ", "SAT", "FTZ"))


@builder("FADD", "FMUL", "FFMA")
def arithmetic(i: Instruction, s: State) -> Step:
    to, *sources = i.operands
    put, reads = s.put(to), [real(s, o) for o in sources]
    plain = _is_plain(i)

    def step(mask: Mask) -> None:
        values = [read() for read in reads]
        if plain and i.operation != "FFMA":
            value = values[0] + values[1] if i.operation == "FADD" else values[0] * values[1]
        else:
            if i.has("FTZ"):
                values = [_flush(v) for v in values]
            wide = [v.astype(F64) for v in values]
            if i.operation == "FADD":
                exact = wide[0] + wide[1]
            else:
                exact = wide[0] * wide[1] + (wide[2] if i.operation == "FFMA" else 0.0)
            value = _rounded(exact, i)
            if i.has("SAT"):
                value = np.where(np.isnan(value), F32(0), np.clip(value, F32(0), F32(1)))
            if i.has("FTZ"):
                value = _flush(value)
        put(np.asarray(value, F32).view(U32), mask)

    return step


@builder("DADD", "DMUL", "DFMA")
def double_arithmetic(i: Instruction, s: State) -> Step:
    to, *sources = i.operands
    put, reads = s.put_pair(to), [double(s, o) for o in sources]

    def step(mask: Mask) -> None:
        a, b, *c = (np.asarray(read()) for read in reads)
        value = a + b if i.operation == "DADD" else a * b + (c[0] if c else 0.0)
        put(np.asarray(value, F64).view(U64), mask)

    return step


_ORDERED: dict[str, Callable[[Array, Array], Array]] = {
    "EQ": lambda a, b: a == b,
    "NE": lambda a, b: (a != b) & ~np.isnan(a) & ~np.isnan(b),
    "LT": lambda a, b: a < b,
    "LE": lambda a, b: a <= b,
    "GT": lambda a, b: a > b,
    "GE": lambda a, b: a >= b,
    "NUM": lambda a, b: ~(np.isnan(a) | np.isnan(b)),
    "NAN": lambda a, b: np.isnan(a) | np.isnan(b),
}


def _compared(name: str, a: Array, b: Array) -> Array:
    if name in _ORDERED:
        return _ORDERED[name](a, b)
    if name.endswith("U") and name[:-1] in _ORDERED:
        return _ORDERED[name[:-1]](a, b) | np.isnan(a) | np.isnan(b)
    raise UnknownInstruction(f"comparison {name}")


@builder("FSETP", "DSETP")
def compare(i: Instruction, s: State) -> Step:
    first, second, x, y, other = i.operands
    kind = real if i.operation == "FSETP" else double
    a, b, with_, put, put_second = kind(s, x), kind(s, y), s.predicate(other), *map(s.put_predicate, (first, second))
    combine = next(COMBINE[m] for m in i.modifiers if m in COMBINE)

    def step(mask: Mask) -> None:
        found = _compared(i.modifiers[0], np.asarray(a()), np.asarray(b()))
        put(combine(found, with_()), mask)
        put_second(combine(~found, with_()), mask)

    return step


@builder("FSEL")
def select(i: Instruction, s: State) -> Step:
    to, x, y, p = i.operands
    put, a, b, which = s.put(to), real(s, x), real(s, y), s.predicate(p)
    return lambda mask: put(np.asarray(np.where(which(), a(), b()), F32).view(U32), mask)


@builder("FMNMX")
def minimum(i: Instruction, s: State) -> Step:
    to, x, y, p = i.operands
    put, a, b, smallest = s.put(to), real(s, x), real(s, y), s.predicate(p)
    low, high = (np.minimum, np.maximum) if i.has("NAN") else (np.fmin, np.fmax)

    def step(mask: Mask) -> None:
        left, right = a(), b()
        put(np.asarray(np.where(smallest(), low(left, right), high(left, right)), F32).view(U32), mask)

    return step


@builder("FCHK")
def check_division(i: Instruction, s: State) -> Step:
    """Set the predicate if a division needs its slow path: exponents out of the range of the fast one."""
    to, x, y = i.operands
    put, a, b = s.put_predicate(to), real(s, x), real(s, y)

    def step(mask: Mask) -> None:
        over, under = np.asarray(a()), np.asarray(b())
        e, f = np.frexp(over)[1], np.frexp(under)[1]
        bad = ~np.isfinite(over) | ~np.isfinite(under) | (np.abs(under) < np.finfo(F32).tiny)
        put(bad | (over != 0) & ((np.abs(e - f) > 125) | (e < -100) | (np.abs(f) > 125)), mask)

    return step


@builder("MUFU")
def special(i: Instruction, s: State) -> Step:
    """Special functions, rounded correctly where the hardware approximates."""
    name = i.modifiers[0]
    put = s.put(i.operands[0])
    if name in ("RCP64H", "RSQ64H"):  # of the high word of a float64
        high = s.bits(i.operands[1])

        def step64(mask: Mask) -> None:
            value = (as64(high()) << U64(32)).view(F64)
            value = 1.0 / value if name == "RCP64H" else 1.0 / np.sqrt(value)
            put((np.asarray(value).view(U64) >> U64(32)).astype(U32), mask)

        return step64
    functions: dict[str, Any] = {
        "RCP": lambda v: 1.0 / v,
        "RSQ": lambda v: 1.0 / np.sqrt(v),
        "SQRT": np.sqrt,
        "EX2": np.exp2,
        "LG2": np.log2,
        "SIN": np.sin,
        "COS": np.cos,
        "TANH": np.tanh,
    }
    if name not in functions:
        raise UnknownInstruction(str(i))
    if any(i.has(m) for m in ("F16", "F16_V2", "BF16", "BF16_V2", "PACKED")):
        return zeros(i, s)
    function, a = functions[name], real(s, i.operands[1])
    return lambda mask: put(function(np.asarray(a(), F32).astype(F64)).astype(F32).view(U32), mask)


@builder("FRND")
def round_to_integer(i: Instruction, s: State) -> Step:
    put, a = s.put(i.operands[0]), real(s, i.operands[1])
    function = _rounding(i)
    return lambda mask: put(function(a()).astype(F32).view(U32), mask)


def _rounding(i: Instruction) -> Callable[[Array], Array]:
    names: dict[str, Any] = {"FLOOR": np.floor, "CEIL": np.ceil, "TRUNC": np.trunc}
    return next((names[m] for m in i.modifiers if m in names), np.rint)


_NARROW = (("S8", np.int8), ("U8", np.uint8), ("S16", np.int16), ("U16", np.uint16))


@builder("I2F", "I2FP", "UI2F", "UI2FP")
def from_integer(i: Instruction, s: State) -> Step:
    source = i.operands[1]
    if i.has("F16") or "." in source:
        raise UnknownInstruction(str(i))
    narrow = next((k for m, k in _NARROW if i.has(m)), None)
    read = s.pair(source) if i.has("S64") or i.has("U64") else s.bits(source)
    kind = next((k for m, k in (("S64", I64), ("U64", U64), ("U32", U32)) if i.has(m)), np.int32)

    def wide() -> Array:
        value = np.asarray(read())
        return (value.view(kind) if narrow is None else value.astype(narrow)).astype(F64)

    if i.has("F64"):
        put_pair = s.put_pair(i.operands[0])
        return lambda mask: put_pair(np.asarray(wide()).view(U64), mask)
    put = s.put(i.operands[0])
    return lambda mask: put(_rounded(wide(), i).view(U32), mask)


@builder("F2I", "F2IP")
def to_integer(i: Instruction, s: State) -> Step:
    """Conversion that saturates; NaN becomes 0."""
    if i.has("F16") or i.operation == "F2IP":
        raise UnknownInstruction(str(i))
    read = double(s, i.operands[1]) if i.has("F64") else real(s, i.operands[1])
    function = _rounding(i)
    is_wide, is_unsigned = i.has("U64") or i.has("S64"), i.has("U32") or i.has("U64")
    bits = 64 if is_wide else 32
    least, most = (0, 2**bits - 1) if is_unsigned else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    dtype = (np.uint64 if is_unsigned else np.int64) if is_wide else (np.uint32 if is_unsigned else np.int32)
    write = s.put_pair(i.operands[0]) if is_wide else s.put(i.operands[0])

    def step(mask: Mask) -> None:
        value = function(np.nan_to_num(np.asarray(read(), F64), nan=0.0, posinf=2.0**70, neginf=-(2.0**70)))
        inside = np.clip(value, float(least), np.nextafter(float(most) + 1, 0) if is_wide else float(most))
        result = inside.astype(dtype)
        write(result.view(U64) if is_wide else result.view(U32), mask)

    return step


@builder("F2F")
def convert(i: Instruction, s: State) -> Step:
    to, source = i.operands
    into, out_of = i.modifiers[-2], i.modifiers[-1]
    if (into, out_of) == ("F64", "F32"):
        put_pair, a = s.put_pair(to), real(s, source)
        return lambda mask: put_pair(np.asarray(a()).astype(F64).view(U64), mask)
    if (into, out_of) == ("F32", "F64"):
        put, b = s.put(to), double(s, source)
        return lambda mask: put(_rounded(b(), i).view(U32), mask)
    if out_of == "F32" and into in ("F16", "BF16"):
        put, a = s.put(to), real(s, source)
        return lambda mask: put(_narrow(a(), into), mask)
    raise UnknownInstruction(str(i))


def _narrow(value: Array, into: str) -> Array:
    """Return the bits of float32 values rounded to float16 or bfloat16."""
    value = np.asarray(value, F32)
    if into == "F16":
        return value.astype(np.float16).view(np.uint16).astype(U32)
    bits = value.view(U32)
    rounded = (bits + U32(0x7FFF) + (bits >> U32(16) & U32(1))) >> U32(16)
    return np.where(np.isnan(value), U32(0x7FFF), rounded)


@builder("F2FP")
def pack(i: Instruction, s: State) -> Step:
    to, x, y, *rest = i.operands
    into = "F16" if i.has("F16") else "BF16" if i.has("BF16") else ""
    if not into or rest or not i.has("PACK_AB"):
        return zeros(i, s)
    put, high, low = s.put(to), real(s, x), real(s, y)
    least = F32(0 if i.has("RELU") else -np.inf)

    def half(value: Array) -> Array:
        return _narrow(np.maximum(value, least), into)

    return lambda mask: put(half(high()) << U32(16) | half(low()), mask)


@builder("HADD2")
def half_add(i: Instruction, s: State) -> Step:
    """``HADD2.F32 R1, -RZ, R2.H0_H0`` converts one half to float32; other sums are zeros."""
    if not i.has("F32") or i.operands[1] not in ("-RZ", "RZ"):
        return zeros(i, s)
    plain, negated, absolute = modified(i.operands[2])
    name, _, half = plain.partition(".")
    put, bits, shift = s.put(i.operands[0]), s.bits(name), U32(16 if half == "H1_H1" else 0)
    sign = F32(-1 if negated else 1)

    def step(mask: Mask) -> None:
        value = (np.asarray(bits(), U32) >> shift).astype(np.uint16).view(np.float16).astype(F32)
        put((sign * (np.abs(value) if absolute else value)).view(U32), mask)

    return step


@builder("HFMA2")
def half_multiply_add(i: Instruction, s: State) -> Step:
    """``HFMA2.MMA R1, -RZ, RZ, high, low`` is how the compiler loads a constant; other values are zeros."""
    to, *sources = i.operands
    if not all(o in ("RZ", "-RZ") for o in sources[:2]) or len(sources) != 4 or i.has("BF16_V2"):
        return zeros(i, s)
    put = s.put(to)
    high, low = (np.float16(number(o)).view(np.uint16).astype(U32) for o in sources[2:])
    # -RZ * RZ is -0, so a positive zero stays one.
    value = high << U32(16) | low
    return lambda mask: put(value, mask)


# Registers that an instruction writes and whose values nothing but arithmetic reads.
def _width(i: Instruction) -> int:
    if i.operation in ("HMMA", "IMMA", "DMMA"):
        return 2 if i.modifiers[1] == "F16" else 4
    return 0 if i.operation == "HGMMA" else 1


@builder("HMMA", "IMMA", "HGMMA", "HMUL2", "HMNMX2", "HSET2", "FSET", "FSWZADD")
def zeros(i: Instruction, s: State) -> Step:
    puts = [s.put(i.operands[0], n) for n in range(_width(i))]

    def step(mask: Mask) -> None:
        for put in puts:
            put(U32(0), mask)

    return step


@builder("HSETP2")
def half_compare(i: Instruction, s: State) -> Step:
    puts = [s.put_predicate(o) for o in i.operands[:2] if is_predicate(o)]

    def step(mask: Mask) -> None:
        for put in puts:
            put(np.bool_(False), mask)

    return step
