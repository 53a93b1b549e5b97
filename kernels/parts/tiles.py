"""Tiles of GEMMs whose rows are pixels."""

import functools
import os

from hyperseg.kernels import launch
from hyperseg.kernels.launch import block, cdiv

# Enough programs to fill a GPU: with fewer, tiles are made smaller. In the interpreter each program costs time.
PROGRAMS = 1 if os.environ.get("TRITON_INTERPRET") == "1" else 128
SMS = 132  # among which programs are shared out

TILES = [
    {"BLOCK_P": pixels, "BLOCK_O": columns, "BLOCK_K": depth, "num_warps": warps, "num_stages": 3}
    for pixels, columns, depth, warps in (
        (16, 32, 64, 2),
        (32, 32, 64, 4),
        (64, 32, 32, 4),
        (64, 64, 64, 4),
        (128, 32, 32, 4),
        (128, 64, 32, 4),
        (128, 64, 64, 8),
    )
]


def tile(n: int, pixels: int, columns: int, bytes_: int) -> launch.Options:
    """Return the tiles of a GEMM, smaller where there would be too few."""
    block_p, block_o = 64, block(columns, 16, 64)
    while block_p > 16 and n * cdiv(pixels, block_p) * cdiv(columns, block_o) < PROGRAMS:
        if block_o > 32:
            block_o //= 2
        else:
            block_p //= 2
    return {"BLOCK_P": block_p, "BLOCK_O": block_o, "BLOCK_K": 128 // bytes_, "num_warps": 4, "num_stages": 3}


@functools.cache
def cheapest_tile(n: int, pixels: int, columns: int, depth: int, bytes_: int) -> launch.Options:
    """Return the tile of a GEMM that gives the busiest SM the fewest passes through shared memory."""
    block_k = block(depth, 16, 128 // bytes_)
    steps = cdiv(depth, block_k)

    def cost(tile: tuple[int, int]) -> int:
        block_p, block_o = tile
        programs = n * cdiv(pixels, block_p) * cdiv(columns, block_o)
        # Both operands are written and read; 64 rows multiply on wgmma, which reads its right operand by itself.
        passes = 3 * block_p + 2 * block_o if block_p == 64 else 4 * (block_p + block_o)
        # An SM runs programs at once, so in the last round of many it is not alone busy.
        return max(cdiv(programs, SMS) * SMS, programs) * (steps * passes + 4 * block_p + 2 * block_o + 100)

    widest = block(columns, 16, 32 if columns % 64 and columns < 160 else 64)  # columns that do not exist cost as much
    sides = [o for o in (64, 32, 16) if o <= widest]
    tile = min(((p, o) for p in (64, 32, 16) for o in sides), key=cost) if PROGRAMS > 1 else (64, widest)
    return {"BLOCK_P": tile[0], "BLOCK_O": tile[1], "BLOCK_K": block_k, "num_warps": 4, "num_stages": 3}
