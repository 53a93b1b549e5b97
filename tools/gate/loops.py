"""Count the instructions in the loops of compiled CUDA kernels, for estimates of their time.

    python -m tools.gate.loops inverted_residual_mma half Li16ELi3E

prints, for every kernel of the built extension whose mangled name contains all these words, its length and its loops:
start address, nesting, instruction count and the most frequent instructions. A loop's count includes the loops inside
it once. Trip counts and taken branches are for the reader to supply: see docs/kernels/cuda.md.
"""

import argparse
import collections
import re
from dataclasses import dataclass

from tools.gate import extension

_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,5})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9]*)([^;]*);")
_TARGET = re.compile(r"0x([0-9a-f]+)")


@dataclass(frozen=True)
class Loop:
    """A loop from instruction address ``first`` to ``last``, inside ``depth`` other loops."""

    first: int
    last: int
    depth: int
    operations: collections.Counter


def loops(code: str) -> tuple[int, list[Loop]]:
    """Return a kernel's number of instructions and its loops, in the order of their first instruction."""
    found = [(int(a, 16), operation, rest) for a, operation, rest in _INSTRUCTION.findall(code)]
    spans = []
    for address, operation, rest in found:
        target = _TARGET.search(rest)
        if operation == "BRA" and target and int(target[1], 16) < address:
            spans.append((int(target[1], 16), address))
    result = []
    for first, last in sorted(spans):
        depth = sum(f <= first and last <= e and (f, e) != (first, last) for f, e in spans)
        inside = collections.Counter(operation for address, operation, _ in found if first <= address <= last)
        result.append(Loop(first, last, depth, inside))
    return len(found), result


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.gate.loops", description=__doc__)
    parser.add_argument("words", nargs="+", help="parts of the mangled name")
    parser.add_argument("--arch", help="such as sm_90 (default: the first architecture of the extension)")
    args = parser.parse_args()
    if message := extension.missing():
        parser.error(message)
    built = dict.fromkeys(arch for arch, _ in extension.kernels())
    arch = args.arch or extension.first_architecture()
    if arch not in built:
        parser.error(f"the extension was built for {', '.join(built)}, not for {arch}")
    wanted = [name for at, name in extension.kernels() if at == arch and all(word in name for word in args.words)]
    if not wanted:
        parser.error(f"no kernel for {arch} has {' and '.join(args.words)} in its mangled name")
    functions = extension.functions(arch)
    for name in wanted:
        code = functions[name]
        length, found = loops(code)
        print(f"{name} for {arch}: {length} instructions")
        for loop in found:
            mostly = ", ".join(f"{count} {operation}" for operation, count in loop.operations.most_common(8))
            print(f"  {'  ' * loop.depth}{loop.first:#06x}: {sum(loop.operations.values())}: {mostly}")


if __name__ == "__main__":
    main()
