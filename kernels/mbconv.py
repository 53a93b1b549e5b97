"""``mbconv`` in Triton, EfficientNet's block for inference: expand, depthwise, squeeze-excite, project; four launches.

Both hidden maps go through memory, channels-last, in the dtype of x: the squeeze needs every pixel of the second one
before the project can start, and recomputing the first one in each depthwise tile costs more than it saves.
"""

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyperseg.kernels import launch
from hyperseg.kernels.language import silu
from hyperseg.kernels.launch import DTYPES, block, precision
from hyperseg.kernels.parts.maps import output_map

TENSOR_CORES = ("_mbconv_fwd_expand_kernel", "_mbconv_fwd_project_kernel")

# Enough programs to fill a GPU: with fewer, tiles are made smaller. In the interpreter each program costs time.
PROGRAMS = 1 if os.environ.get("TRITON_INTERPRET") == "1" else 128
PARTIALS = 256  # at most this many partial sums per image and channel, which the squeeze adds

_TILES = [
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
CANDIDATES = {
    "_mbconv_fwd_expand_kernel": _TILES,
    "_mbconv_fwd_depthwise_kernel": [
        {"BLOCK_Y": rows, "BLOCK_X": columns, "BLOCK_C": channels, "num_warps": warps}
        for rows, columns, channels, warps in (
            (2, 8, 32, 2),
            (4, 8, 32, 2),
            (4, 16, 32, 4),
            (8, 8, 32, 4),
            (4, 8, 64, 4),
            (2, 16, 64, 4),
            (2, 8, 128, 4),
        )
    ],
    "_mbconv_fwd_project_kernel": _TILES,
}


@triton.jit
def _pixel_offsets(o_p, width, strides, ALIGN: tl.constexpr):
    """Return the offsets of pixels ``o_p``, counted along rows of ``width``, where ALIGN divides the strides."""
    rows, columns = (o_p // width).to(tl.int64), (o_p % width).to(tl.int64)
    return rows * (strides[2] // ALIGN * ALIGN) + columns * (strides[3] // ALIGN * ALIGN)


@triton.jit
def _mbconv_fwd_expand_kernel(
    x_ptr,  # [N, C, H, W], any strides
    w_ptr,  # [hidden, C]
    b_ptr,  # [hidden]
    y_ptr,  # [N, H * W, hidden]
    C,
    hidden,
    width,
    pixels,
    x_strides,
    ALIGN: tl.constexpr,  # divides C and the strides of pixels: vectorized loads
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """y[p, h] = silu(b[h] + sum over c of x[p, c] * w[h, c])."""
    n = tl.program_id(2).to(tl.int64)
    o_p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    o_h = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    m_p, m_h = o_p < pixels, o_h < hidden
    C = C // ALIGN * ALIGN
    o_x = _pixel_offsets(o_p, width, x_strides, ALIGN)
    x_rows = x_ptr + n * x_strides[0] + o_x[:, None]
    w_rows = w_ptr + o_h.to(tl.int64)[None, :] * C
    total = tl.zeros((BLOCK_P, BLOCK_O), tl.float32)
    for c in range(0, C, BLOCK_K):
        o_c = c + tl.arange(0, BLOCK_K)
        m_c = o_c < C
        b_x = tl.load(x_rows + o_c.to(tl.int64)[None, :] * x_strides[1], mask=m_p[:, None] & m_c[None, :], other=0.0)
        b_w = tl.load(w_rows + o_c[:, None], mask=m_c[:, None] & m_h[None, :], other=0.0)
        total = tl.dot(b_x, b_w, total, input_precision=PRECISION)
    total += tl.load(b_ptr + o_h, mask=m_h, other=0.0).to(tl.float32)[None, :]
    y = y_ptr + (n * pixels + o_p[:, None]) * hidden + o_h[None, :]
    tl.store(y, silu(total).to(y_ptr.dtype.element_ty), mask=m_p[:, None] & m_h[None, :])


@triton.jit(do_not_specialize=["H", "W", "height", "width", "top", "left", "steps"])
def _mbconv_fwd_depthwise_kernel(
    x_ptr,  # [N, hidden, H, W], any strides
    w_ptr,  # [hidden, SIZE, SIZE]
    b_ptr,  # [hidden]
    y_ptr,  # [N, height * width, hidden]
    sums_ptr,  # [N, groups of tiles, hidden], float32
    hidden,
    H,
    W,
    height,
    width,
    top,
    left,
    steps,  # tiles per group
    taps,  # SIZE, at run time: unrolled, the loop has all loads in flight and takes 250 registers
    x_strides,
    ALIGN: tl.constexpr,
    SIZE: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """y[p, h] = silu(b[h] + sum over taps of x[STRIDE * p + tap, h] * w[h, tap]), and sums of y over the pixels."""
    n = tl.program_id(2).to(tl.int64)
    o_c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    hidden = hidden // ALIGN * ALIGN
    m_c = (o_c < hidden)[None, :]
    stride_h, stride_w = x_strides[2] // ALIGN * ALIGN, x_strides[3] // ALIGN * ALIGN
    x_map = x_ptr + n * x_strides[0] + o_c.to(tl.int64)[None, :] * x_strides[1]
    w_rows = w_ptr + o_c * (SIZE * SIZE)
    b_b = tl.load(b_ptr + o_c, mask=o_c < hidden, other=0.0).to(tl.float32)[None, :]
    tiles_y = tl.cdiv(height, BLOCK_Y)
    o_t = tl.arange(0, BLOCK_Y * BLOCK_X)
    sums = tl.zeros((BLOCK_Y * BLOCK_X, BLOCK_C), tl.float32)
    for step in range(steps):
        # Down the map: rows that two tiles share are still in the cache.
        tile = tl.program_id(0) * steps + step
        o_y = tile % tiles_y * BLOCK_Y + o_t // BLOCK_X
        o_x = tile // tiles_y * BLOCK_X + o_t % BLOCK_X
        m_p = (o_y < height) & (o_x < width)
        total = tl.zeros((BLOCK_Y * BLOCK_X, BLOCK_C), tl.float32)
        i_y, i_x = o_y * STRIDE - top, o_x * STRIDE - left
        x_tile = x_map + (i_y.to(tl.int64) * stride_h + i_x.to(tl.int64) * stride_w)[:, None]
        for dy in range(taps):
            m_y = (i_y + dy >= 0) & (i_y + dy < H) & m_p
            for dx in tl.static_range(SIZE):
                m = m_y & (i_x + dx >= 0) & (i_x + dx < W)
                b_x = tl.load(x_tile + (dy * stride_h + dx * stride_w), mask=m[:, None] & m_c, other=0.0)
                b_w = tl.load(w_rows + (dy * SIZE + dx), mask=o_c < hidden, other=0.0)
                total += b_x.to(tl.float32) * b_w.to(tl.float32)[None, :]
        y = silu(total + b_b)
        y_rows = y_ptr + ((n * height + o_y) * width + o_x)[:, None] * hidden
        tl.store(y_rows + o_c[None, :], y.to(y_ptr.dtype.element_ty), mask=m_p[:, None] & m_c)
        sums += tl.where(m_p[:, None], y, 0.0)
    o_s = (n * tl.num_programs(0) + tl.program_id(0)) * hidden + o_c
    tl.store(sums_ptr + o_s, tl.sum(sums, 0), mask=o_c < hidden)


@triton.jit(do_not_specialize=["groups", "squeezed", "pixels"])
def _mbconv_fwd_gate_kernel(
    sums_ptr,  # [N, groups, hidden], float32
    reduce_ptr,  # [squeezed, hidden]
    reduce_bias_ptr,  # [squeezed]
    expand_ptr,  # [hidden, squeezed]
    expand_bias_ptr,  # [hidden]
    gate_ptr,  # [N, hidden], float32
    groups,
    hidden,
    squeezed,
    pixels,
    BLOCK_G: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """gate = sigmoid(expand silu(reduce mean + reduce_bias) + expand_bias); one program per image."""
    n = tl.program_id(0).to(tl.int64)
    o_s, o_g = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_G)
    m_s = o_s < squeezed
    partial = tl.zeros((BLOCK_S, BLOCK_H), tl.float32)
    for h in range(0, hidden, BLOCK_H):
        o_h = h + tl.arange(0, BLOCK_H)
        m_h = o_h < hidden
        sums = tl.zeros((BLOCK_G, BLOCK_H), tl.float32)
        for g in range(0, groups, BLOCK_G):
            rows = n * groups + g + o_g[:, None]
            m_g = (g + o_g < groups)[:, None] & m_h[None, :]
            sums += tl.load(sums_ptr + rows * hidden + o_h[None, :], mask=m_g, other=0.0)
        mean = tl.sum(sums, 0) / pixels
        o_w = o_s[:, None] * hidden + o_h[None, :]
        b_w = tl.load(reduce_ptr + o_w, mask=m_s[:, None] & m_h[None, :], other=0.0)
        partial += b_w.to(tl.float32) * mean[None, :]
    z = silu(tl.sum(partial, 1) + tl.load(reduce_bias_ptr + o_s, mask=m_s, other=0.0).to(tl.float32))
    for h in range(0, hidden, BLOCK_H):
        o_h = h + tl.arange(0, BLOCK_H)
        m_h = o_h < hidden
        o_w = o_h[None, :] * squeezed + o_s[:, None]
        b_w = tl.load(expand_ptr + o_w, mask=m_s[:, None] & m_h[None, :], other=0.0)
        gate = tl.sum(b_w.to(tl.float32) * z[:, None], 0)
        gate += tl.load(expand_bias_ptr + o_h, mask=m_h, other=0.0).to(tl.float32)
        tl.store(gate_ptr + n * hidden + o_h, tl.sigmoid(gate), mask=m_h)


@triton.jit
def _mbconv_fwd_project_kernel(
    y_ptr,  # [N, height * width, hidden]
    gate_ptr,  # [N, hidden], float32
    w_ptr,  # [out, hidden]
    b_ptr,  # [out]
    x_ptr,  # [N, out, height, width], any strides; added with RESIDUAL
    out_ptr,  # [N, out, height, width], any strides
    hidden,
    out,
    width,
    pixels,
    x_strides,
    out_strides,
    RESIDUAL: tl.constexpr,
    ALIGN: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """out[p, o] = b[o] + sum over h of y[p, h] * gate[h] * w[o, h], plus x[p, o] with RESIDUAL."""
    n = tl.program_id(2).to(tl.int64)
    o_p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    o_o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    out = out // ALIGN * ALIGN
    m_p, m_o = o_p < pixels, o_o < out
    y_rows = y_ptr + (n * pixels + o_p[:, None]) * hidden
    w_rows = w_ptr + o_o.to(tl.int64)[None, :] * hidden
    total = tl.zeros((BLOCK_P, BLOCK_O), tl.float32)
    for h in range(0, hidden, BLOCK_K):
        o_h = h + tl.arange(0, BLOCK_K)
        m_h = o_h < hidden
        b_y = tl.load(y_rows + o_h[None, :], mask=m_p[:, None] & m_h[None, :], other=0.0)
        b_gate = tl.load(gate_ptr + n * hidden + o_h, mask=m_h, other=0.0)
        b_w = tl.load(w_rows + o_h[:, None], mask=m_h[:, None] & m_o[None, :], other=0.0)
        gated = (b_y.to(tl.float32) * b_gate[None, :]).to(b_y.dtype)
        total = tl.dot(gated, b_w, total, input_precision=PRECISION)
    total += tl.load(b_ptr + o_o, mask=m_o, other=0.0).to(tl.float32)[None, :]
    m = m_p[:, None] & m_o[None, :]
    o_o = o_o.to(tl.int64)
    if RESIDUAL:
        o_x = _pixel_offsets(o_p, width, x_strides, ALIGN)
        x_rows = x_ptr + n * x_strides[0] + o_x[:, None]
        b_x = tl.load(x_rows + o_o[None, :] * x_strides[1], mask=m, other=0.0)
        total += b_x.to(tl.float32)
    o_out = _pixel_offsets(o_p, width, out_strides, ALIGN)
    out_rows = out_ptr + n * out_strides[0] + o_out[:, None]
    tl.store(out_rows + o_o[None, :] * out_strides[1], total.to(out_ptr.dtype.element_ty), mask=m)


def mbconv(
    x: Tensor,
    expand: Tensor | None,
    expand_bias: Tensor | None,
    depthwise: Tensor,
    depthwise_bias: Tensor,
    reduce: Tensor,
    reduce_bias: Tensor,
    gate: Tensor,
    gate_bias: Tensor,
    project: Tensor,
    project_bias: Tensor,
    stride: int,
    padding: list[int],
    residual: bool,
) -> Tensor:
    """Compute ``hyperseg.ops.mbconv``; x in float32, float16 or bfloat16, with any strides."""
    if x.dtype not in DTYPES:
        raise TypeError(f"mbconv: x must be float32, float16 or bfloat16 for Triton, got {x.dtype}")
    left, right, top, bottom = padding
    size = depthwise.shape[1]
    height = (x.shape[2] + top + bottom - size) // stride + 1
    width = (x.shape[3] + left + right - size) // stride + 1
    out = output_map(x, project.shape[0], (height, width))
    if x.shape[0] == 0:
        return out
    with torch.cuda.device_of(x):  # Triton launches on the current device
        y = x
        if expand is not None and expand_bias is not None:
            y = _expand(x, expand.contiguous(), expand_bias.contiguous())
        y, sums = _depthwise(y, depthwise.contiguous(), depthwise_bias.contiguous(), stride, top, left, height, width)
        scale = _gate(sums, [t.contiguous() for t in (reduce, reduce_bias, gate, gate_bias)], height * width)
        _project(y, scale, project.contiguous(), project_bias.contiguous(), x if residual else None, out)
    return out


def _expand(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the hidden map [N, hidden, H, W] in channels-last memory."""
    n, channels, h, w = x.shape
    hidden = weight.shape[0]
    y = x.new_empty((n, h, w, hidden))
    default = _tile(n, h * w, hidden, x.element_size())
    chosen = launch.options("_mbconv_fwd_expand_kernel", x, default, channels=channels, hidden=hidden)
    grid = (triton.cdiv(h * w, chosen["BLOCK_P"]), triton.cdiv(hidden, chosen["BLOCK_O"]), n)
    _mbconv_fwd_expand_kernel[grid](
        x, weight, bias, y, channels, hidden, w, h * w, x.stride(),
        ALIGN=_align(channels, x),
        PRECISION=precision(x.dtype),
        enable_fp_fusion=True,
        **chosen,
    )  # fmt: skip
    return y.permute(0, 3, 1, 2)


def _depthwise(
    x: Tensor, weight: Tensor, bias: Tensor, stride: int, top: int, left: int, height: int, width: int
) -> tuple[Tensor, Tensor]:
    """Return the second hidden map [N, height, width, hidden] and partial sums of its channels."""
    n, hidden, h, w = x.shape
    size = weight.shape[1]
    default = _window(n, height, width, hidden)
    chosen = launch.options("_mbconv_fwd_depthwise_kernel", x, default, hidden=hidden, size=size, stride=stride)
    tiles = triton.cdiv(height, chosen["BLOCK_Y"]) * triton.cdiv(width, chosen["BLOCK_X"])
    steps = triton.cdiv(tiles, PARTIALS)
    groups = triton.cdiv(tiles, steps)
    y = x.new_empty((n, height, width, hidden))
    sums = x.new_empty((n, groups, hidden), dtype=torch.float32)
    _mbconv_fwd_depthwise_kernel[(groups, triton.cdiv(hidden, chosen["BLOCK_C"]), n)](
        x, weight, bias, y, sums, hidden, h, w, height, width, top, left, steps, size, x.stride(),
        ALIGN=_align(hidden, x),
        SIZE=size,
        STRIDE=stride,
        enable_fp_fusion=True,
        **chosen,
    )  # fmt: skip
    return y, sums


def _gate(sums: Tensor, weights: list[Tensor], pixels: int) -> Tensor:
    """Return the factor of each channel, [N, hidden] in float32."""
    n, groups, hidden = sums.shape
    squeezed = weights[0].shape[0]
    block_s = triton.next_power_of_2(squeezed)
    # 2048 weights per block are 16 per thread. With 8 warps ptxas uses the stack, for any tile.
    default = {"BLOCK_S": block_s, "BLOCK_H": block(hidden, 16, max(16, 2048 // block_s)), "num_warps": 4}
    chosen = launch.options("_mbconv_fwd_gate_kernel", weights[0], default, hidden=hidden, squeezed=squeezed)
    gate = torch.empty_like(sums[:, 0])
    _mbconv_fwd_gate_kernel[(n,)](
        sums, *weights, gate, groups, hidden, squeezed, pixels,
        BLOCK_G=16,
        enable_fp_fusion=True,
        **chosen,
    )  # fmt: skip
    return gate


def _project(y: Tensor, gate: Tensor, weight: Tensor, bias: Tensor, x: Tensor | None, out: Tensor) -> None:
    """Fill ``out`` with the projection of the gated map, plus ``x`` if given."""
    n, channels, height, width = out.shape
    hidden = weight.shape[1]
    default = _tile(n, height * width, channels, y.element_size())
    chosen = launch.options("_mbconv_fwd_project_kernel", y, default, hidden=hidden, out=channels)
    grid = (triton.cdiv(height * width, chosen["BLOCK_P"]), triton.cdiv(channels, chosen["BLOCK_O"]), n)
    added = out if x is None else x
    _mbconv_fwd_project_kernel[grid](
        y, gate, weight, bias, added, out, hidden, channels, width, height * width, added.stride(), out.stride(),
        RESIDUAL=x is not None,
        ALIGN=min(_align(channels, added), _align(channels, out)),
        PRECISION=precision(y.dtype),
        enable_fp_fusion=True,
        **chosen,
    )  # fmt: skip


def _tile(n: int, pixels: int, columns: int, bytes_: int) -> launch.Options:
    """Return the tiles of a GEMM, smaller where there would be too few."""
    block_p, block_o = 64, block(columns, 16, 64)
    while block_p > 16 and n * triton.cdiv(pixels, block_p) * triton.cdiv(columns, block_o) < PROGRAMS:
        if block_o > 32:
            block_o //= 2
        else:
            block_p //= 2
    return {"BLOCK_P": block_p, "BLOCK_O": block_o, "BLOCK_K": 128 // bytes_, "num_warps": 4, "num_stages": 3}


def _window(n: int, height: int, width: int, channels: int) -> launch.Options:
    """Return the tiles of the depthwise convolution, likewise; 16 values per thread."""
    block_y, block_x, block_c = 8, 16, block(channels, 16, 32)
    columns = n * triton.cdiv(width, block_x) * triton.cdiv(channels, block_c)
    while block_y > 2 and columns * triton.cdiv(height, block_y) < PROGRAMS:
        block_y //= 2
    warps = block_y * block_x * block_c // 512
    return {"BLOCK_Y": block_y, "BLOCK_X": block_x, "BLOCK_C": block_c, "num_warps": warps}


def _align(channels: int, x: Tensor) -> int:
    """Return 8 if every pixel starts at a multiple of 8 elements, else 1; Triton itself only finds multiples of 16."""
    return 8 if all(value % 8 == 0 for value in (channels, x.stride(2), x.stride(3))) else 1
