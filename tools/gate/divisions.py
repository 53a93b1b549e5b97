"""Integer divisions in loops: which kernels have them, and which may.

A division by a number that the compiler does not know takes some 20 instructions, and about 100 cycles before its
result can be used. In a loop over values it costs more than everything else: use ``FastDivmod`` or work the places out
once.
"""

from tools.gate.extension import plain
from tools.machine.loops import OPERATIONS, frequent_divisions
from tools.machine.sass import parse_only

# Kernels that may divide in a loop, with the reason.
ALLOWED = {
    "inverted_residual_simt_kernel": "levels in float32 and unusual shapes: once per pixel and chunk",
    "add_rows_kernel": "partial sums of a block's statistics, a row each",
    "mbconv_chain_kernel": "projections, as in the kernel below, and gates",
    "mbconv_depthwise_kernel": "float32 and unusual sizes: taps and channels, once per block",
    "mbconv_pointwise_kernel": "two to five per warp: rows of a tile, once per block",
}


def dividing(functions: dict[str, str]) -> set[str]:
    """Return the kernels, by their names in the sources, whose machine code divides integers in a loop."""
    return {plain(name) for name, text in functions.items() if frequent_divisions(parse_only(text, OPERATIONS))}


def problems(found: set[str]) -> list[str]:
    """Return what is wrong about these kernels that divide."""
    bad = [f"{name} divides integers in a loop: see tools/gate/divisions.py" for name in sorted(found - set(ALLOWED))]
    gone = set(ALLOWED) - found
    return bad + [f"{name} may divide integers in a loop but does not: remove it there" for name in sorted(gone)]
