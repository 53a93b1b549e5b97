"""Gradients gathered, in Triton: of a map from those of its windows, and of a small map from those of its larger self.

Each pixel of the answer sums, in a fixed order, what it was read for: no atomics, the same bits every time. PyTorch's
own gradients of padding by reflection and of bilinear resizing add up in any order on a GPU.
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
    readers,
    reflections,
    share_of,
    store_map,
    wide,
)
from hyperseg.kernels.launch import block

CANDIDATES = {
    name: [{"BLOCK_M": m, "BLOCK_C": c, "num_warps": w} for m in (16, 32, 64) for c in (16, 32) for w in (2, 4)]
    for name in ("windows_backward", "resize_backward")
}


@triton.jit
def _windows_bwd_kernel(
    d_ptr,  # window map [N, C, grid_h * (patch_h + 2), grid_w * (patch_w + 2)]
    out_ptr,  # [N, C, height, width]
    height,
    width,
    grid_h,
    grid_w,
    d_n, d_c, d_h, d_w,
    out_n, out_c, out_h, out_w,
    C: tl.constexpr,
    PATCH_H: tl.constexpr,
    PATCH_W: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """out[y, x] = sum of d over the places in windows, also reflected ones, that show pixel (y, x)."""
    # How many windows hold a pixel beside a border: with patches of one pixel a third one does.
    BACK_H: tl.constexpr = 2 + (PATCH_H == 1)
    BACK_W: tl.constexpr = 2 + (PATCH_W == 1)
    blocks = tl.cdiv(width, BLOCK_M)
    program = tl.program_id(0)
    first = program % blocks * BLOCK_M
    x = first + tl.arange(0, BLOCK_M)
    y = program // blocks % height
    n = program // blocks // height
    m_x = x < width
    o_c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    d = base(d_ptr, n, d_n)
    b_out = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    for i in range(3 * BACK_H):  # which reflection, and how many windows back, of the row
        v_y, m_y = reflections(y, height, i // BACK_H)
        py = (v_y + 1) // PATCH_H - i % BACK_H
        wy = v_y + 1 - py * PATCH_H
        if m_y & (py >= 0) & (py < grid_h) & (wy < PATCH_H + 2):
            row = index(py * (PATCH_H + 2) + wy, WIDE) * d_h
            for j in range(3 * BACK_W):
                which = j // BACK_W
                if (which == 0) | ((which == 1) & (first <= 1)) | ((which == 2) & (first + BLOCK_M > width - 2)):
                    v_x, m = reflections(x, width, which)
                    px = (v_x + 1) // PATCH_W - j % BACK_W
                    wx = v_x + 1 - px * PATCH_W
                    m = m & m_x & (px >= 0) & (px < grid_w) & (wx < PATCH_W + 2)
                    column = index(px * (PATCH_W + 2) + wx, WIDE) * d_w
                    b_out += load_map(d, row + column, o_c, m, C, d_c, WIDE).to(tl.float32)
    pixel = index(y, WIDE) * out_h + index(x, WIDE) * out_w
    store_map(base(out_ptr, n, out_n), b_out, pixel, o_c, m_x, C, out_c, WIDE)


@triton.jit
def _share(o, i, scale, size, count):
    """The weight that pixel ``o``, of ``count``, gives value ``i`` of an axis of ``size`` when it samples it."""
    share, _, _, _ = share_of(i, o, scale, size)
    return tl.where(o < count, share, 0.0)


@triton.jit
def _resize_bwd_kernel(
    d_ptr,  # [N, C, height, width]
    out_ptr,  # [N, C, h, w]
    height,
    width,
    h,
    w,
    scale_h,  # h / height
    scale_w,
    readers_h,  # at most so many pixels of an axis sample one value
    readers_w,
    d_n, d_c, d_h, d_w,
    out_n, out_c, out_h, out_w,
    C: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """out[y, x] = sum over the pixels of d that sampled (y, x) of d by the weight with which they did."""
    blocks = tl.cdiv(w, BLOCK_M)
    program = tl.program_id(0)
    x = program % blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    y = program // blocks % h
    n = program // blocks // h
    m_x = x < w
    o_c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    d = base(d_ptr, n, d_n)
    first_y, first_x = first_reader(y, scale_h, h), first_reader(x, scale_w, w)
    b_out = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    for i in range(readers_h):
        o_y = first_y + i
        share_y = _share(o_y, y, scale_h, h, height)
        if share_y > 0.0:
            for j in range(readers_w):
                o_x = first_x + j
                share = share_y * _share(o_x, x, scale_w, w, width)
                pixel = index(o_y, WIDE) * d_h + index(o_x, WIDE) * d_w
                b_d = load_map(d, pixel, o_c, m_x & (share > 0.0), C, d_c, WIDE).to(tl.float32)
                b_out += b_d * share[:, None]
    pixel = index(y, WIDE) * out_h + index(x, WIDE) * out_w
    store_map(base(out_ptr, n, out_n), b_out, pixel, o_c, m_x, C, out_c, WIDE)


def windows_backward(d: Tensor, grid: tuple[int, int], out: Tensor) -> None:
    """Fill ``out`` [N, C, H, W] with the gradient of the map whose windows have the gradient ``d``, a window map."""
    n, channels, height, width = out.shape
    chosen = _options("windows_backward", out)
    rows = n * height * triton.cdiv(width, chosen["BLOCK_M"])
    with torch.cuda.device_of(out):
        _windows_bwd_kernel[(rows, triton.cdiv(channels, chosen["BLOCK_C"]))](
            d, out, height, width, *grid, *d.stride(), *out.stride(),
            C=channels,
            PATCH_H=height // grid[0],
            PATCH_W=width // grid[1],
            WIDE=wide(d, out),
            enable_fp_fusion=True,
            **chosen,
        )  # fmt: skip


def resize_backward(d: Tensor, out: Tensor) -> None:
    """Fill ``out`` [N, C, h, w] with the gradient of the map that was resized to one with gradient ``d``."""
    n, channels, h, w = out.shape
    height, width = d.shape[2:]
    chosen = _options("resize_backward", out)
    rows = n * h * triton.cdiv(w, chosen["BLOCK_M"])
    with torch.cuda.device_of(out):
        _resize_bwd_kernel[(rows, triton.cdiv(channels, chosen["BLOCK_C"]))](
            d, out, height, width, h, w, h / height, w / width, readers(h, height), readers(w, width),
            *d.stride(), *out.stride(),
            C=channels,
            WIDE=wide(d, out),
            enable_fp_fusion=True,
            **chosen,
        )  # fmt: skip


def _options(kernel: str, out: Tensor) -> launch.Options:
    channels, width = out.shape[1], out.shape[3]
    default = {"BLOCK_M": block(width, 16, 32), "BLOCK_C": block(channels, 16, 32), "num_warps": 4, "num_stages": 1}
    return launch.options(kernel, out, default, channels=channels)
