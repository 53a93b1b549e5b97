"""Gradients of cutting windows and of bilinear resizing: each pixel gathers its gradient in a fixed order.

No atomics, so the gradients are bitwise deterministic. PyTorch's own gradients of reflection padding and of bilinear
resizing add in any order on a GPU.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyperseg.kernels import launch
from hyperseg.kernels.language import (
    base,
    first_reader,
    index,
    load_map,
    pixel_offset,
    readers,
    reflections,
    share_of,
    store_map,
    wide,
)
from hyperseg.kernels.launch import block, cdiv

CANDIDATES = {
    name: [{"BLOCK_M": m, "BLOCK_C": c, "num_warps": w} for m in (16, 32, 64) for c in (16, 32) for w in (2, 4)]
    for name in ("windows_backward", "resize_backward")
}


@triton.jit
def _block_of_row(height, width, BLOCK_M: tl.constexpr):
    """Return the pixels of a program, which takes BLOCK_M of a row: (image, y, the first x, x)."""
    blocks = tl.cdiv(width, BLOCK_M)
    program = tl.program_id(0)
    first = program % blocks * BLOCK_M
    x = first + tl.arange(0, BLOCK_M)
    y = program // blocks % height
    return program // blocks // height, y, first, x


@triton.jit
def _windows_bwd_kernel(
    d_ptr,  # window map
    out_ptr,  # [N, C, height, width]
    size,  # (height, width)
    grid,
    d_strides,
    out_strides,
    C: tl.constexpr,
    PATCH_H: tl.constexpr,
    PATCH_W: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """out[y, x] = sum of d over the places in windows, reflected ones included, that show pixel (y, x)."""
    # Windows that hold a pixel at a patch's border: two along an axis, or three with patches of one pixel.
    BACK_H: tl.constexpr = 2 + (PATCH_H == 1)
    BACK_W: tl.constexpr = 2 + (PATCH_W == 1)
    height, width = size
    n, y, first, x = _block_of_row(height, width, BLOCK_M)
    m_x = x < width
    o_c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    d = base(d_ptr, n, d_strides[0])
    b_out = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    for i in range(3 * BACK_H):  # by reflection of the row, then by windows back
        v_y, m_y = reflections(y, height, i // BACK_H)
        py = (v_y + 1) // PATCH_H - i % BACK_H
        wy = v_y + 1 - py * PATCH_H
        if m_y & (py >= 0) & (py < grid[0]) & (wy < PATCH_H + 2):
            row = index(py * (PATCH_H + 2) + wy, WIDE) * d_strides[2]
            for j in range(3 * BACK_W):
                which = j // BACK_W
                if (which == 0) | ((which == 1) & (first <= 1)) | ((which == 2) & (first + BLOCK_M > width - 2)):
                    v_x, m = reflections(x, width, which)
                    px = (v_x + 1) // PATCH_W - j % BACK_W
                    wx = v_x + 1 - px * PATCH_W
                    m = m & m_x & (px >= 0) & (px < grid[1]) & (wx < PATCH_W + 2)
                    column = index(px * (PATCH_W + 2) + wx, WIDE) * d_strides[3]
                    b_out += load_map(d, row + column, o_c, m, C, d_strides, WIDE).to(tl.float32)
    pixel = pixel_offset(y, x, out_strides, WIDE)
    store_map(base(out_ptr, n, out_strides[0]), b_out, pixel, o_c, m_x, C, out_strides, WIDE)


@triton.jit
def _share(o, i, scale, size, count):
    """Return the weight of value ``i``, on an axis of ``size``, in output ``o`` of ``count``."""
    share, _, _, _ = share_of(i, o, scale, size)
    return tl.where(o < count, share, 0.0)


@triton.jit
def _resize_bwd_kernel(
    d_ptr,  # [N, C, height, width]
    out_ptr,  # [N, C, h, w]
    d_size,  # (height, width)
    size,  # (h, w)
    scale,  # (h / height, w / width)
    most_readers,  # upper bounds on the rows and columns of d that sample one of out
    d_strides,
    out_strides,
    C: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """out[y, x] = sum over the pixels of d that sampled (y, x) of d times the weight with which they did."""
    h, w = size
    n, y, _, x = _block_of_row(h, w, BLOCK_M)
    m_x = x < w
    o_c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    d = base(d_ptr, n, d_strides[0])
    first_y, first_x = first_reader(y, scale[0], h), first_reader(x, scale[1], w)
    b_out = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    for i in range(most_readers[0]):
        o_y = first_y + i
        share_y = _share(o_y, y, scale[0], h, d_size[0])
        if share_y > 0.0:
            for j in range(most_readers[1]):
                o_x = first_x + j
                share = share_y * _share(o_x, x, scale[1], w, d_size[1])
                pixel = pixel_offset(o_y, o_x, d_strides, WIDE)
                b_d = load_map(d, pixel, o_c, m_x & (share > 0.0), C, d_strides, WIDE).to(tl.float32)
                b_out += b_d * share[:, None]
    pixel = pixel_offset(y, x, out_strides, WIDE)
    store_map(base(out_ptr, n, out_strides[0]), b_out, pixel, o_c, m_x, C, out_strides, WIDE)


def windows_backward(d: Tensor, grid: tuple[int, int], out: Tensor) -> None:
    """Fill ``out`` [N, C, H, W] with the gradient of a map, given that of its windows, the window map ``d``."""
    n, channels, height, width = out.shape
    chosen = _options("windows_backward", out)
    rows = n * height * cdiv(width, chosen["BLOCK_M"])
    with torch.cuda.device_of(out):
        _windows_bwd_kernel[(rows, cdiv(channels, chosen["BLOCK_C"]))](
            d, out, (height, width), grid, d.stride(), out.stride(),
            C=channels,
            PATCH_H=height // grid[0],
            PATCH_W=width // grid[1],
            WIDE=wide(d, out),
            enable_fp_fusion=True,
            **chosen,
        )  # fmt: skip


def resize_backward(d: Tensor, out: Tensor) -> None:
    """Fill ``out`` [N, C, h, w] with the gradient of a map, given that of its resized map, ``d`` [N, C, H, W]."""
    n, channels, h, w = out.shape
    height, width = d.shape[2:]
    chosen = _options("resize_backward", out)
    rows = n * h * cdiv(w, chosen["BLOCK_M"])
    with torch.cuda.device_of(out):
        _resize_bwd_kernel[(rows, cdiv(channels, chosen["BLOCK_C"]))](
            d, out, (height, width), (h, w), (h / height, w / width), (readers(h, height), readers(w, width)),
            d.stride(), out.stride(),
            C=channels,
            WIDE=wide(d, out),
            enable_fp_fusion=True,
            **chosen,
        )  # fmt: skip


def _options(kernel: str, out: Tensor) -> launch.Options:
    channels, width = out.shape[1], out.shape[3]
    default = {"BLOCK_M": block(width, 16, 32), "BLOCK_C": block(channels, 16, 32), "num_warps": 4, "num_stages": 1}
    return launch.options(kernel, out, default, channels=channels)
