"""Tiles of GEMMs whose rows are pixels."""

import os

import triton

from hyperseg.kernels import launch
from hyperseg.kernels.launch import block

# Enough programs to fill a GPU: with fewer, tiles are made smaller. In the interpreter each program costs time.
PROGRAMS = 1 if os.environ.get("TRITON_INTERPRET") == "1" else 128

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
    while block_p > 16 and n * triton.cdiv(pixels, block_p) * triton.cdiv(columns, block_o) < PROGRAMS:
        if block_o > 32:
            block_o //= 2
        else:
            block_p //= 2
    return {"BLOCK_P": block_p, "BLOCK_O": block_o, "BLOCK_K": 128 // bytes_, "num_warps": 4, "num_stages": 3}
