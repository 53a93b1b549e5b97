"""``context_head`` in Triton: one GEMM per convolution, and a launch for the global average.

A GEMM reads its inputs where they are: four pixels of a 2x2 convolution, or a map and the context that is doubled and
concatenated to it. The last one of a pyramid stores each pixel four times, into its channels of the signal.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyperseg.kernels import launch
from hyperseg.kernels.launch import DTYPES, block, precision
from hyperseg.kernels.parts.maps import alignment, channels_last_map
from hyperseg.kernels.parts.tiles import TILES, tile

TENSOR_CORES = ("_context_head_fwd_conv_kernel",)

CANDIDATES = {"_context_head_fwd_conv_kernel": TILES}


@triton.jit
def _rows(x_ptr, n, y, x, size, strides, ALIGN: tl.constexpr):
    """Return the addresses of pixels (y, x) of an image; beyond the map those of its last row and column."""
    y, x = tl.minimum(y, size[0] - 1).to(tl.int64), tl.minimum(x, size[1] - 1).to(tl.int64)
    offsets = y * (strides[2] // ALIGN * ALIGN) + x * (strides[3] // ALIGN * ALIGN)
    return x_ptr + n * (strides[0] // ALIGN * ALIGN) + offsets[:, None]


@triton.jit
def _context_head_fwd_conv_kernel(
    x_ptr,  # [N, C, H, W], any strides
    context_ptr,  # [N, D, h, w], any strides
    w_ptr,  # [out, taps, C] or [out, C + D]
    b_ptr,  # [out]
    y_ptr,  # [N, out, height, width], or with DOUBLED a map of twice the size
    C,
    D,
    out,
    taps,  # 1, or 4: pixels (2y, 2x), (2y, 2x + 1), (2y + 1, 2x), (2y + 1, 2x + 1)
    step,  # 1 or 2
    width,
    pixels,
    x_size,
    context_size,
    y_size,
    x_strides,
    context_strides,
    y_strides,
    CONTEXT: tl.constexpr,
    RELU: tl.constexpr,
    DOUBLED: tl.constexpr,
    ALIGN: tl.constexpr,  # divides channels and the strides of pixels: vectorized loads
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """y[p, o] = b[o] + sum over taps and c of x[step * p + tap, c] * w[o, tap, c], + that over context[p / 2]."""
    n = tl.program_id(2).to(tl.int64)
    o_p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    o_o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    m_p, m_o = o_p < pixels, o_o < out
    o_y, o_x = o_p // width, o_p % width
    C, D = C // ALIGN * ALIGN, D // ALIGN * ALIGN
    w_rows = w_ptr + o_o.to(tl.int64)[None, :] * (taps * C + D)
    total = tl.zeros((BLOCK_P, BLOCK_O), tl.float32)
    for tap in range(taps):
        rows = _rows(x_ptr, n, o_y * step + tap // 2, o_x * step + tap % 2, x_size, x_strides, ALIGN)
        for c in range(0, C, BLOCK_K):
            o_c = c + tl.arange(0, BLOCK_K)
            m_c = o_c < C
            o_k = o_c.to(tl.int64)[None, :] * x_strides[1]
            b_x = tl.load(rows + o_k, mask=m_p[:, None] & m_c[None, :], other=0.0)
            b_w = tl.load(w_rows + (tap * C + o_c)[:, None], mask=m_c[:, None] & m_o[None, :], other=0.0)
            total = tl.dot(b_x, b_w, total, input_precision=PRECISION)
    if CONTEXT:
        rows = _rows(context_ptr, n, o_y // 2, o_x // 2, context_size, context_strides, ALIGN)
        for c in range(0, D, BLOCK_K):
            o_c = c + tl.arange(0, BLOCK_K)
            m_c = o_c < D
            o_k = o_c.to(tl.int64)[None, :] * context_strides[1]
            b_x = tl.load(rows + o_k, mask=m_p[:, None] & m_c[None, :], other=0.0)
            b_w = tl.load(w_rows + (C + o_c)[:, None], mask=m_c[:, None] & m_o[None, :], other=0.0)
            total = tl.dot(b_x, b_w, total, input_precision=PRECISION)
    total += tl.load(b_ptr + o_o, mask=m_o, other=0.0).to(tl.float32)[None, :]
    if RELU:
        total = tl.where(total < 0.0, 0.0, total)
    total = total.to(y_ptr.dtype.element_ty)
    columns = y_ptr + n * y_strides[0] + o_o.to(tl.int64)[None, :] * y_strides[1]
    if DOUBLED:
        for i in tl.static_range(4):
            y, x = 2 * o_y + i // 2, 2 * o_x + i % 2
            m = (m_p & (y < y_size[0]) & (x < y_size[1]))[:, None] & m_o[None, :]
            o_y_x = y.to(tl.int64) * y_strides[2] + x.to(tl.int64) * y_strides[3]
            tl.store(columns + o_y_x[:, None], total, mask=m)
    else:
        o_y_x = o_y.to(tl.int64) * y_strides[2] + o_x.to(tl.int64) * y_strides[3]
        tl.store(columns + o_y_x[:, None], total, mask=m_p[:, None] & m_o[None, :])


@triton.jit(do_not_specialize=["pixels"])
def _context_head_fwd_mean_kernel(
    x_ptr,  # [N, pixels, C]
    y_ptr,  # [N, C]
    C,
    pixels,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """y[c] = mean over p of x[p, c]."""
    n = tl.program_id(1).to(tl.int64)
    o_p, o_c = tl.arange(0, BLOCK_P), tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = o_c < C
    sums = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for p in range(0, pixels, BLOCK_P):
        rows = (n * pixels + p + o_p)[:, None] * C
        m = (p + o_p < pixels)[:, None] & m_c[None, :]
        sums += tl.load(x_ptr + rows + o_c[None, :], mask=m, other=0.0).to(tl.float32)
    tl.store(y_ptr + n * C + o_c, (tl.sum(sums, 0) / pixels).to(y_ptr.dtype.element_ty), mask=m_c)


def context_head(
    x: Tensor,
    reduce: Tensor | None,
    reduce_bias: Tensor | None,
    down: list[Tensor],
    down_biases: list[Tensor],
    up: list[Tensor],
    up_biases: list[Tensor],
) -> Tensor:
    """Compute ``hyperseg.ops.context_head``; x in float32, float16 or bfloat16, with any strides."""
    if x.dtype not in DTYPES:
        raise TypeError(f"context_head: x must be float32, float16 or bfloat16 for Triton, got {x.dtype}")
    reduced = 0 if reduce is None else reduce.shape[0]
    out = channels_last_map(x, reduced + up[0].shape[0], *x.shape[2:])
    features = [x]
    with torch.cuda.device_of(x):  # Triton launches on the current device
        if reduce is not None and reduce_bias is not None:
            features[0] = _conv(x, reduce, reduce_bias, out[:, :reduced])
        for weight, bias in zip(down, down_biases, strict=True):
            height, width = features[-1].shape[2:]
            y = channels_last_map(x, weight.shape[0], (height + 1) // 2, (width + 1) // 2)
            features.append(_conv(features[-1], weight.permute(0, 2, 3, 1), bias, y))
        context = _mean(features[-1])
        used = features[:-1] if reduce is None else features[1:]
        for i in range(len(up) - 1, 0, -1):
            y = channels_last_map(x, up[i].shape[0], *used[i].shape[2:])
            context = _conv(used[i], up[i], up_biases[i], y, context)
        _conv(used[0], up[0], up_biases[0], out[:, reduced:], context, relu=reduce is not None, doubled=reduced > 0)
    return out


def _conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    y: Tensor,
    context: Tensor | None = None,
    relu: bool = True,
    doubled: bool = False,
) -> Tensor:
    """Fill y and return it; ``weight``: [out, 2, 2, C] for a 2x2 convolution at stride 2."""
    n, channels = x.shape[:2]
    out = weight.shape[0]
    taps = 4 if weight.dim() == 4 else 1
    height, width = x.shape[2:] if doubled else y.shape[2:]
    before, extra = (x, 0) if context is None else (context, context.shape[1])
    default = tile(n, height * width, out, x.element_size())
    chosen = launch.options(
        "_context_head_fwd_conv_kernel", x, default, channels=channels, context=extra, out=out, taps=taps
    )
    grid = (triton.cdiv(height * width, chosen["BLOCK_P"]), triton.cdiv(out, chosen["BLOCK_O"]), n)
    _context_head_fwd_conv_kernel[grid](
        x, before, weight.contiguous(), bias.contiguous(), y,
        channels, extra, out, taps, 2 if taps == 4 else 1, width, height * width,
        tuple(x.shape[2:]), tuple(before.shape[2:]), tuple(y.shape[2:]), x.stride(), before.stride(), y.stride(),
        CONTEXT=context is not None,
        RELU=relu,
        DOUBLED=doubled,
        ALIGN=min(alignment(channels, x), alignment(extra, before)),
        PRECISION=precision(x.dtype),
        enable_fp_fusion=True,
        **chosen,
    )  # fmt: skip
    return y


def _mean(x: Tensor) -> Tensor:
    """Return the global average [N, C, 1, 1] of a map in channels-last memory."""
    n, channels, height, width = x.shape
    y = channels_last_map(x, channels, 1, 1)
    default = {"BLOCK_P": 32, "BLOCK_C": block(channels, 16, 32), "num_warps": 4}
    chosen = launch.options("_context_head_fwd_mean_kernel", x, default, channels=channels)
    grid = (triton.cdiv(channels, chosen["BLOCK_C"]), n)
    _context_head_fwd_mean_kernel[grid](x, y, channels, height * width, enable_fp_fusion=True, **chosen)
    return y
