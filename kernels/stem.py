"""``stem`` in Triton: uint8 frames to the encoder's first map (normalise, convolve, SiLU) in one launch."""

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyperseg.kernels import launch
from hyperseg.kernels.language import base, index, silu, wide
from hyperseg.kernels.launch import DTYPES, block, cdiv, precision

TENSOR_CORES = ("_stem_fwd_kernel",)

BLOCK_K = 32  # holds the 27 inputs of 3x3 taps
# Outputs per program: 16 per thread. Larger in the interpreter, whose time grows with the number of programs.
VALUES = 16384 if os.environ.get("TRITON_INTERPRET") == "1" else 2048
ROWS = 4  # per program

CANDIDATES = {
    "_stem_fwd_kernel": [
        {"BLOCK_P": pixels, "num_warps": warps} for pixels, warps in ((32, 2), (32, 4), (64, 2), (128, 4), (128, 8))
    ]
}


@triton.jit
def _float(byte):
    """Convert bytes to float32: as the last bits of 2**23, because the instruction for it has an eighth of the rate."""
    return (byte.to(tl.int32) | 0x4B000000).to(tl.float32, bitcast=True) - 8388608.0


@triton.jit
def _taps(k, inputs, scale_ptr, shift_ptr, w_rows, m_o, w_strides, SIZE: tl.constexpr, BLOCK_K: tl.constexpr):
    """Return of BLOCK_K inputs the place, (row, column, colour), the affine map of pixels, and the weights."""
    o_k = k + tl.arange(0, BLOCK_K)
    # Colours first: a pixel's three bytes are contiguous. Inputs that do not exist have weights of 0.
    tap = tl.minimum(o_k // 3, SIZE * SIZE - 1)
    ky, kx, colour = tap // SIZE, tap % SIZE, o_k % 3
    o_w = colour.to(tl.int64) * w_strides[1] + ky.to(tl.int64) * w_strides[2] + kx.to(tl.int64) * w_strides[3]
    b_w = tl.load(w_rows + o_w[:, None], mask=(o_k < inputs)[:, None] & m_o[None, :], other=0.0)
    scale, shift = tl.load(scale_ptr + colour), tl.load(shift_ptr + colour)
    return ky, kx, colour, scale[None, :], shift[None, :], b_w


@triton.jit
def _stem_fwd_kernel(
    frames_ptr,  # uint8 [N, H, W, 3], any strides
    scale_ptr,  # [3], float32
    shift_ptr,  # [3], float32
    w_ptr,  # [C, 3, SIZE, SIZE], any strides
    b_ptr,  # [C]
    y_ptr,  # [N, rows, columns, C]
    C,
    frame_size,  # (H, W)
    size,  # (height, width) of the padded image
    rows,
    columns,
    top,
    left,
    inputs,  # 3 * SIZE * SIZE, at run time: LLVM unrolls a loop over a constant
    each,  # rows per program
    frame_strides,
    w_strides,
    SIZE: tl.constexpr,
    STRIDE: tl.constexpr,
    STEP: tl.constexpr,  # bytes between pixels, if that is 3, else 0
    ONCE: tl.constexpr,  # inputs are at most BLOCK_K: taps are the same for all rows
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """y[p, o] = silu(b[o] + sum over taps and colours of (frame[STRIDE * p + tap] * scale + shift) * w[o, tap])."""
    DTYPE: tl.constexpr = w_ptr.dtype.element_ty
    n = tl.program_id(2).to(tl.int64)
    blocks = tl.cdiv(columns, BLOCK_P)
    begin, first = tl.program_id(0) // blocks * each, tl.program_id(0) % blocks * BLOCK_P
    o_p = tl.arange(0, BLOCK_P)
    o_o = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_p, m_o = first + o_p < columns, o_o < C
    m = m_p[:, None] & m_o[None, :]
    step = STEP if STEP > 0 else frame_strides[2]
    i_x = first * STRIDE - left
    image = base(frames_ptr, n, frame_strides[0])
    o_steps = (index(o_p * STRIDE, WIDE) * step)[:, None]
    w_rows = w_ptr + o_o.to(tl.int64)[None, :] * w_strides[0]
    y_pixels = y_ptr + ((n * rows * columns + first + o_p[:, None]) * C + o_o[None, :])
    b_b = tl.load(b_ptr + o_o, mask=m_o, other=0.0).to(tl.float32)[None, :]
    if ONCE:
        ky, kx, colour, scale, shift, b_w = _taps(
            0, inputs, scale_ptr, shift_ptr, w_rows, m_o, w_strides, SIZE, BLOCK_K
        )
    for row in range(begin, tl.minimum(begin + each, rows)):
        i_y = row * STRIDE - top
        # All taps of all pixels are inside the frame: no bounds.
        inside = (i_y >= 0) & (i_y + SIZE <= frame_size[0]) & (i_x >= 0)
        inside = inside & (i_x + (BLOCK_P - 1) * STRIDE + SIZE <= frame_size[1])
        corner = image + (tl.cast(i_y, tl.int64) * frame_strides[1] + i_x.to(tl.int64) * step)
        total = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
        for k in range(0, BLOCK_K if ONCE else inputs, BLOCK_K):
            if not ONCE:
                ky, kx, colour, scale, shift, b_w = _taps(
                    k, inputs, scale_ptr, shift_ptr, w_rows, m_o, w_strides, SIZE, BLOCK_K
                )
            o_colour = (index(colour, WIDE) * frame_strides[3])[None, :]
            if inside:
                o_tap = (index(ky, WIDE) * frame_strides[1] + index(kx, WIDE) * step)[None, :] + o_colour
                b_x = (_float(tl.load(corner + (o_tap + o_steps))) * scale + shift).to(DTYPE)
            else:
                y, x = i_y + ky[None, :], i_x + (o_p * STRIDE)[:, None] + kx[None, :]
                m_x = (y >= 0) & (y < size[0]) & (x >= 0) & (x < size[1]) & m_p[:, None]
                y = tl.minimum(tl.maximum(y, 0), frame_size[0] - 1)
                x = tl.minimum(tl.maximum(x, 0), frame_size[1] - 1)
                o_in = index(y, WIDE) * frame_strides[1] + index(x, WIDE) * step + o_colour
                b_x = _float(tl.load(image + o_in, mask=m_x, other=0))
                b_x = tl.where(m_x, b_x * scale + shift, 0.0).to(DTYPE)
            total = tl.dot(b_x, b_w, total, input_precision=PRECISION)
        y_row = y_pixels + tl.cast(row, tl.int64) * columns * C
        tl.store(y_row, silu(total + b_b).to(y_ptr.dtype.element_ty), mask=m)


def stem(
    frames: Tensor,
    scale: Tensor,
    shift: Tensor,
    weight: Tensor,
    bias: Tensor,
    height: int,
    width: int,
    stride: int,
    padding: list[int],
) -> Tensor:
    """Compute ``hyperseg.ops.stem``; weight in float32, float16 or bfloat16."""
    if weight.dtype not in DTYPES:
        raise TypeError(f"stem: weight must be float32, float16 or bfloat16 for Triton, got {weight.dtype}")
    n, frame_height, frame_width, _ = frames.shape
    channels, _, size, _ = weight.shape
    left, right, top, bottom = padding
    rows, columns = (height + top + bottom - size) // stride + 1, (width + left + right - size) // stride + 1
    y = weight.new_empty((n, rows, columns, channels))
    if n == 0:
        return y.permute(0, 3, 1, 2)
    block_c = block(channels, 16, 64)
    default = {"BLOCK_P": VALUES // block_c, "BLOCK_C": block_c, "num_warps": 4}
    chosen = launch.options("_stem_fwd_kernel", weight, default, channels=channels, size=size, stride=stride)
    each = min(ROWS, rows)
    strips = cdiv(rows, each) * cdiv(columns, chosen["BLOCK_P"])
    grid = (strips, cdiv(channels, chosen["BLOCK_C"]), n)
    with torch.cuda.device_of(frames):  # Triton launches on the current device
        _stem_fwd_kernel[grid](
            frames, scale.contiguous(), shift.contiguous(), weight, bias.contiguous(), y,
            channels, (frame_height, frame_width), (height, width), rows, columns, top, left,
            3 * size * size, each, frames.stride(), weight.stride(),
            SIZE=size,
            STRIDE=stride,
            STEP=3 if frames.stride(2) == 3 else 0,
            ONCE=3 * size * size <= BLOCK_K,
            WIDE=wide(frames),
            PRECISION=precision(weight.dtype),
            BLOCK_K=BLOCK_K,
            num_stages=1,
            enable_fp_fusion=True,
            **chosen,
        )  # fmt: skip
    return y.permute(0, 3, 1, 2)
