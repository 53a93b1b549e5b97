"""A 1x1 decoder level in one kernel: the weights of its patches are generated in registers and applied at once.

With the small patches of the first levels each weight is applied to a few pixels only, and writing the weights to
memory and reading them back would cost more than applying them. A program generates the weights of one output channel
for a block of patches, by one GEMM of signal and generator, and applies them to the patches' pixels.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyperseg.kernels import launch
from hyperseg.kernels.language import activate, coordinate, index, place, sample, wide
from hyperseg.kernels.launch import block, cdiv, precision

TENSOR_CORES = ("_generated_pointwise_kernel",)
CANDIDATES = {
    "generated_pointwise": [
        {"BLOCK_P": p, "BLOCK_O": o, "num_warps": w} for p in (16, 32, 64) for o in (1, 2, 4) for w in (2, 4)
    ]
}

MOST_PIXELS = 16  # per patch
MOST_WIDTH = 64  # signal channels per group


@triton.jit
def _generated(
    b_signal, generator_ptr, row, o_i, COUNT: tl.constexpr, WIDTH: tl.constexpr, strides, PRECISION: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Return the weights [patches, inputs ``o_i``] of one output, whose generator rows begin at ``row``."""
    o_k = tl.arange(0, BLOCK_K)
    at = generator_ptr + ((row + o_i).to(tl.int64) * strides[0])[None, :] + (o_k * strides[1])[:, None]
    b_generator = tl.load(at, mask=(o_k < WIDTH)[:, None] & (o_i < COUNT)[None, :], other=0.0)
    return tl.dot(b_signal, b_generator, input_precision=PRECISION)


@triton.jit
def _offsets(n, y, x, strides, WIDE: tl.constexpr):
    """Return the offsets of pixels (y, x) [patches, pixels] in images ``n`` [patches]."""
    return (n.to(tl.int64) * strides[0])[:, None] + index(y, WIDE) * strides[2] + index(x, WIDE) * strides[3]


@triton.jit
def _generated_pointwise_kernel(
    x_ptr,  # [N, SKIP, height, width], any strides
    previous_ptr,  # [N, PREVIOUS, h, w]
    signal_ptr,  # [N, C, grid_h, grid_w], from the first channel that this level reads
    generator_ptr,  # [groups * ROWS, WIDTH]
    bias_ptr,  # [OUT]
    out_ptr,  # [N, OUT, height, width]
    patches,  # N * grid_h * grid_w
    size,  # (height, width)
    previous_size,
    scale,  # (previous height / height, previous width / width)
    grid,
    x_strides,
    previous_strides,
    signal_strides,
    generator_strides,
    out_strides,
    SKIP: tl.constexpr,
    PREVIOUS: tl.constexpr,
    OUT: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,  # per group: whole outputs
    PATCH_H: tl.constexpr,
    PATCH_W: tl.constexpr,
    RESIZED: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
    PIXELS: tl.constexpr,
    BLOCK_P: tl.constexpr,  # patches
    BLOCK_I: tl.constexpr,  # inputs
    BLOCK_K: tl.constexpr,  # signal channels
    BLOCK_O: tl.constexpr,  # outputs, for which inputs are loaded once
):  # fmt: skip
    """out[p, o] = relu(bias[o] + sum over i of x[p, i] * sum over k of generator[o, i, k] * signal[patch of p, k])."""
    IN: tl.constexpr = 2 + SKIP + PREVIOUS
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    o_p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    m_p = o_p < patches
    n, py, px = place(tl.minimum(o_p, patches - 1), grid)
    o_r = tl.arange(0, PIXELS)
    m = m_p[:, None] & (o_r < PATCH_H * PATCH_W)[None, :]
    y = py[:, None] * PATCH_H + (o_r // PATCH_W)[None, :]
    x = px[:, None] * PATCH_W + (o_r % PATCH_W)[None, :]
    y, x = tl.where(m, y, 0), tl.where(m, x, 0)
    at_x = _offsets(n, y, x, x_strides, WIDE)
    y0, y1, w_y = sample(y, scale[0], previous_size[0])
    x0, x1, w_x = sample(x, scale[1], previous_size[1])
    at_00 = _offsets(n, y0, x0, previous_strides, WIDE)
    at_01 = _offsets(n, y0, x1, previous_strides, WIDE)
    at_10 = _offsets(n, y1, x0, previous_strides, WIDE)
    at_11 = _offsets(n, y1, x1, previous_strides, WIDE)
    at_signal = n.to(tl.int64) * signal_strides[0] + py.to(tl.int64) * signal_strides[2]
    at_signal += px.to(tl.int64) * signal_strides[3]
    first = tl.program_id(1) * BLOCK_O
    at_out = _offsets(n, y, x, out_strides, WIDE)
    o_k, o_i = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_I)

    m_k = m_p[:, None] & (o_k < WIDTH)[None, :]
    signals, sums = (), ()
    for j in tl.static_range(BLOCK_O):
        row = tl.minimum(first + j, OUT - 1) * IN
        channel = row // ROWS * WIDTH
        o_signal = at_signal[:, None] + ((channel + o_k).to(tl.int64) * signal_strides[1])[None, :]
        b_signal = tl.load(signal_ptr + o_signal, mask=m_k, other=0.0)
        weights = _generated(b_signal, generator_ptr, row, o_i, 2, WIDTH, generator_strides, PRECISION, BLOCK_K)
        w_first = tl.sum(tl.where((o_i == 0)[None, :], weights, 0.0), 1)
        w_second = tl.sum(tl.where((o_i == 1)[None, :], weights, 0.0), 1)
        signals = signals + (b_signal,)
        sums = sums + (coordinate(x, size[1]) * w_first[:, None] + coordinate(y, size[0]) * w_second[:, None],)
    for i in range(0, SKIP, BLOCK_I):
        m_i = m[:, :, None] & (i + o_i < SKIP)[None, None, :]
        o_c = (index(i + o_i, WIDE) * x_strides[1])[None, None, :]
        b_x = tl.load(x_ptr + (at_x[:, :, None] + o_c), mask=m_i, other=0.0).to(tl.float32)
        added = ()
        for j in tl.static_range(BLOCK_O):
            row = tl.minimum(first + j, OUT - 1) * IN + 2
            weights = _generated(
                signals[j], generator_ptr, row, i + o_i, SKIP, WIDTH, generator_strides, PRECISION, BLOCK_K
            )
            added = added + (sums[j] + tl.sum(b_x * weights[:, None, :], 2),)
        sums = added
    for i in range(0, PREVIOUS, BLOCK_I):
        m_i = m[:, :, None] & (i + o_i < PREVIOUS)[None, None, :]
        o_c = (index(i + o_i, WIDE) * previous_strides[1])[None, None, :]
        b_x = tl.load(previous_ptr + (at_00[:, :, None] + o_c), mask=m_i, other=0.0).to(tl.float32)
        if RESIZED:
            b_01 = tl.load(previous_ptr + (at_01[:, :, None] + o_c), mask=m_i, other=0.0).to(tl.float32)
            b_10 = tl.load(previous_ptr + (at_10[:, :, None] + o_c), mask=m_i, other=0.0).to(tl.float32)
            b_11 = tl.load(previous_ptr + (at_11[:, :, None] + o_c), mask=m_i, other=0.0).to(tl.float32)
            upper = b_x * (1.0 - w_x)[:, :, None] + b_01 * w_x[:, :, None]
            lower = b_10 * (1.0 - w_x)[:, :, None] + b_11 * w_x[:, :, None]
            b_x = (upper * (1.0 - w_y)[:, :, None] + lower * w_y[:, :, None]).to(DTYPE).to(tl.float32)
        added = ()
        for j in tl.static_range(BLOCK_O):
            row = tl.minimum(first + j, OUT - 1) * IN + 2 + SKIP
            weights = _generated(
                signals[j], generator_ptr, row, i + o_i, PREVIOUS, WIDTH, generator_strides, PRECISION, BLOCK_K
            )
            added = added + (sums[j] + tl.sum(b_x * weights[:, None, :], 2),)
        sums = added
    for j in tl.static_range(BLOCK_O):
        o = tl.minimum(first + j, OUT - 1)
        b_out = activate(sums[j] + tl.load(bias_ptr + o).to(tl.float32), 1)
        tl.store(
            out_ptr + at_out + o.to(tl.int64) * out_strides[1],
            b_out.to(DTYPE),
            mask=m & (first + j + 0 * o_r < OUT)[None, :],
        )


def fits(x: Tensor, previous: Tensor | None, signal: Tensor, generator: Tensor, groups: int, inputs: int) -> bool:
    """Return whether the generator's groups hold whole outputs and patches and groups are small enough."""
    pixels = x.shape[2] // signal.shape[2] * (x.shape[3] // signal.shape[3])
    whole = generator.shape[0] // groups % inputs == 0
    most = MOST_PIXELS // 4 if _scattered(x, previous) else MOST_PIXELS  # else the addresses take too many registers
    return whole and pixels <= most and generator.shape[1] <= MOST_WIDTH


def _scattered(x: Tensor, previous: Tensor | None) -> bool:
    """Return whether channels are not contiguous, so that each needs an address of its own."""
    return x.stride(1) != 1 or (previous is not None and previous.stride(1) != 1)


def generated_pointwise(
    x: Tensor, previous: Tensor | None, signal: Tensor, generator: Tensor, bias: Tensor, groups: int, out: Tensor
) -> None:
    """Fill ``out`` [N, O, H, W] with relu(W (coordinates, x, previous resized to x) + bias), W from the signal.

    Args:
        signal: [N, C, fh, fw], from the first channel that the generator reads.
        generator: [groups * rows, width]; ``fits`` must be true.
    """
    n, skip, height, width = x.shape
    fh, fw = signal.shape[2:]
    patch_h, patch_w = height // fh, width // fw
    before, extra = (x, 0) if previous is None else (previous, previous.shape[1])
    h, w = before.shape[2:]
    pixels = block(patch_h * patch_w, 1, MOST_PIXELS)
    scattered = _scattered(x, previous)
    # Without tensor cores the signals of each output stay in registers, and more than 32 of two outputs do not fit.
    wide_float32 = x.dtype == torch.float32 and generator.shape[1] > 32
    default = {
        "BLOCK_P": 32 if pixels == 1 and x.dtype.itemsize == 2 else 16,
        "BLOCK_O": 1 if wide_float32 else 2,
        "BLOCK_I": 16 if pixels > 4 or scattered or x.dtype == torch.float32 else 32,
        "num_warps": 8 if (pixels > 1 and scattered) or (pixels > 4 and x.dtype == torch.float32) else 4,
        "num_stages": 1,
    }
    chosen = launch.options("generated_pointwise", x, default, inputs=skip + extra, outputs=out.shape[1], pixels=pixels)
    grid = (cdiv(n * fh * fw, chosen["BLOCK_P"]), cdiv(out.shape[1], chosen["BLOCK_O"]))
    with torch.cuda.device_of(x):
        _generated_pointwise_kernel[grid](
            x, before, signal, generator, bias, out,
            n * fh * fw, (height, width), (h, w), (h / height, w / width), (fh, fw),
            x.stride(), before.stride(), signal.stride(), generator.stride(), out.stride(),
            SKIP=skip,
            PREVIOUS=extra,
            OUT=out.shape[1],
            WIDTH=generator.shape[1],
            ROWS=generator.shape[0] // groups,
            PATCH_H=patch_h,
            PATCH_W=patch_w,
            RESIZED=before.shape[2:] != x.shape[2:],
            PRECISION=precision(x.dtype),
            WIDE=wide(x, before, out),
            PIXELS=pixels,
            BLOCK_K=block(generator.shape[1], 16, MOST_WIDTH),
            enable_fp_fusion=True,
            **chosen,
        )  # fmt: skip
