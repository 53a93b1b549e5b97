"""``stem`` in Triton: uint8 frames to the encoder's first map (normalise, convolve, SiLU) in one launch."""

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyperseg.kernels import launch
from hyperseg.kernels.language import base, index, silu, wide
from hyperseg.kernels.launch import DTYPES, block, precision

TENSOR_CORES = ("_stem_fwd_kernel",)

BLOCK_K = 32  # holds the 27 inputs of 3x3 taps
# Outputs per program: 16 per thread. Larger in the interpreter, whose time grows with the number of programs.
VALUES = 16384 if os.environ.get("TRITON_INTERPRET") == "1" else 2048

CANDIDATES = {
    "_stem_fwd_kernel": [
        {"BLOCK_P": pixels, "num_warps": warps} for pixels, warps in ((32, 2), (32, 4), (64, 2), (128, 4), (128, 8))
    ]
}


@triton.jit
def _stem_fwd_kernel(
    frames_ptr,  # uint8 [N, H, W, 3], any strides
    scale_ptr,  # [3], float32
    shift_ptr,  # [3], float32
    w_ptr,  # [C, 3, SIZE, SIZE], any strides
    b_ptr,  # [C]
    y_ptr,  # [N, h * w, C]
    C,
    frame_size,  # (H, W)
    size,  # (height, width) of the padded image
    columns,  # w
    pixels,  # h * w
    top,
    left,
    inputs,  # 3 * SIZE * SIZE, at run time: LLVM unrolls a loop over a constant
    frame_strides,
    w_strides,
    SIZE: tl.constexpr,
    STRIDE: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """y[p, o] = silu(b[o] + sum over taps and colours of (frame[STRIDE * p + tap] * scale + shift) * w[o, tap])."""
    n = tl.program_id(2)
    o_p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    o_o = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_p, m_o = o_p < pixels, o_o < C
    i_y = (o_p // columns * STRIDE - top)[:, None]
    i_x = (o_p % columns * STRIDE - left)[:, None]
    image = base(frames_ptr, n, frame_strides[0])
    w_rows = w_ptr + o_o.to(tl.int64)[None, :] * w_strides[0]
    total = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for k in range(0, inputs, BLOCK_K):
        o_k = k + tl.arange(0, BLOCK_K)
        m_k = o_k < inputs
        # Colours first: a pixel's three bytes are contiguous.
        ky, kx, colour = o_k // (3 * SIZE), o_k // 3 % SIZE, o_k % 3
        y, x = i_y + ky[None, :], i_x + kx[None, :]
        m = (y >= 0) & (y < size[0]) & (x >= 0) & (x < size[1]) & m_k[None, :] & m_p[:, None]
        row = tl.minimum(tl.maximum(y, 0), frame_size[0] - 1)
        column = tl.minimum(tl.maximum(x, 0), frame_size[1] - 1)
        o_x = index(row, WIDE) * frame_strides[1] + index(column, WIDE) * frame_strides[2]
        o_x += (index(colour, WIDE) * frame_strides[3])[None, :]
        b_x = tl.load(image + o_x, mask=m, other=0).to(tl.float32)
        scale = tl.load(scale_ptr + colour)
        shift = tl.load(shift_ptr + colour)
        b_x = tl.where(m, b_x * scale[None, :] + shift[None, :], 0.0).to(w_ptr.dtype.element_ty)
        o_w = colour.to(tl.int64) * w_strides[1] + ky.to(tl.int64) * w_strides[2] + kx.to(tl.int64) * w_strides[3]
        b_w = tl.load(w_rows + o_w[:, None], mask=m_k[:, None] & m_o[None, :], other=0.0)
        total = tl.dot(b_x, b_w, total, input_precision=PRECISION)
    total += tl.load(b_ptr + o_o, mask=m_o, other=0.0).to(tl.float32)[None, :]
    total = silu(total)
    y_rows = y_ptr + (n.to(tl.int64) * pixels + o_p[:, None]) * C
    tl.store(y_rows + o_o[None, :], total.to(y_ptr.dtype.element_ty), mask=m_p[:, None] & m_o[None, :])


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
    grid = (triton.cdiv(rows * columns, chosen["BLOCK_P"]), triton.cdiv(channels, chosen["BLOCK_C"]), n)
    with torch.cuda.device_of(frames):  # Triton launches on the current device
        _stem_fwd_kernel[grid](
            frames, scale.contiguous(), shift.contiguous(), weight, bias.contiguous(), y,
            channels, (frame_height, frame_width), (height, width), columns, rows * columns, top, left,
            3 * size * size, frames.stride(), weight.stride(),
            SIZE=size,
            STRIDE=stride,
            WIDE=wide(frames),
            PRECISION=precision(weight.dtype),
            BLOCK_K=BLOCK_K,
            num_stages=1,
            enable_fp_fusion=True,
            **chosen,
        )  # fmt: skip
    return y.permute(0, 3, 1, 2)
