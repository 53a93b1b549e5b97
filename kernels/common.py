"""What the kernels share: index arithmetic in Triton, and what launchers pass on to it."""

import torch
import triton
import triton.language as tl

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@triton.jit
def reflect(i, size):
    """The pixel that padding by reflection shows at ``i``: -1 is 1, ``size`` is ``size - 2``."""
    last = size - 1
    return last - tl.abs(last - tl.abs(i))


@triton.jit
def sample(o, scale, size):
    """Where outputs ``o`` sample an axis of ``size`` values: (low, high, weight of high), half-pixel centres."""
    source = tl.maximum((o.to(tl.float32) + 0.5) * scale - 0.5, 0.0)
    low = tl.minimum(source.to(tl.int32), size - 1)
    high = tl.minimum(low + 1, size - 1)
    weight = tl.minimum(source - low.to(tl.float32), 1.0)
    return low, high, weight


@triton.jit
def share_of(o, outputs, scale, size):
    """How much of ``outputs`` is the value at ``o``, and what else they sample: (share, low, high, weight of high)."""
    low, high, weight = sample(outputs, scale, size)
    share = tl.where(low == o, 1.0 - weight, 0.0) + tl.where(high == o, weight, 0.0)
    return share, low, high, weight


@triton.jit
def first_reader(o, scale, size):
    """The first output that samples the value at ``o``: the one behind ``(o - 1/2) / scale - 1/2``."""
    first = tl.maximum(tl.floor((o.to(tl.float32) - 0.5) / scale - 0.5), 0.0).to(tl.int32)
    share, _, _, _ = share_of(o, first, scale, size)  # 0 where this one just does not
    return tl.where(share == 0.0, first + 1, first)


def readers(size: int, count: int) -> int:
    """At most so many of ``count`` outputs sample one of ``size`` values: those less than a step away."""
    return min(count, -(-2 * count // size))


def block(size: int, least: int = 16, most: int = 128) -> int:
    """The power of two that holds ``size`` values, within what a block may have; ``tl.dot`` needs 16."""
    return min(max(triton.next_power_of_2(size), least), most)


def precision(dtype: torch.dtype) -> str:
    """For ``tl.dot``: float32 is multiplied exactly unless PyTorch was told that TF32 will do."""
    return "tf32" if dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"
