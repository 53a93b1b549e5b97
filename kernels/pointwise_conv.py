"""``pointwise_conv`` in Triton: independent 1x1 convolutions with bias and activation in one launch."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyperseg.kernels import launch
from hyperseg.kernels.language import silu
from hyperseg.kernels.launch import DTYPES, precision
from hyperseg.kernels.parts.maps import alignment, channels_last_map
from hyperseg.kernels.parts.tiles import TILES, tile

TENSOR_CORES = ("_pointwise_conv_fwd_kernel",)
ACTIVATIONS = {"none": 0, "relu": 1, "silu": 2}
MOST = 6  # convolutions per launch: a kernel is compiled for each number of them

CANDIDATES = {"_pointwise_conv_fwd_kernel": TILES}


@triton.jit(do_not_specialize=["begins", "channels", "outs", "widths", "pixels", "x_strides", "activations"])
def _pointwise_conv_fwd_kernel(
    xs,  # pointers to [N, C, H, W], any strides; one of each tuple per convolution
    ws,  # [out, C]
    bs,  # [out]
    ys,  # [N, H * W, out]
    begins,  # first program
    channels,  # C
    outs,
    widths,  # W
    pixels,  # H * W
    x_strides,  # without that of channels if LAST
    activations,
    COUNT: tl.constexpr,
    LAST: tl.constexpr,  # channels are contiguous
    ALIGN: tl.constexpr,  # divides all C and strides of pixels: vectorized loads
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """y[p, o] = activation(b[o] + sum over c of x[p, c] * w[o, c])."""
    program = tl.program_id(0)
    x_ptr, w_ptr, b_ptr, y_ptr = xs[0], ws[0], bs[0], ys[0]
    begin, C, out, width, count, activation = begins[0], channels[0], outs[0], widths[0], pixels[0], activations[0]
    stride_n, stride_c, stride_h, stride_w = x_strides[0][0], x_strides[0][1], x_strides[0][2], x_strides[0][3]
    for i in tl.static_range(1, COUNT):
        if program >= begins[i]:
            x_ptr, w_ptr, b_ptr, y_ptr = xs[i], ws[i], bs[i], ys[i]
            begin, C, out, width, count, activation = (
                begins[i], channels[i], outs[i], widths[i], pixels[i], activations[i],
            )  # fmt: skip
            stride_n, stride_c, stride_h, stride_w = x_strides[i][0], x_strides[i][1], x_strides[i][2], x_strides[i][3]
    program -= begin
    columns, rows = tl.cdiv(out, BLOCK_O), tl.cdiv(count, BLOCK_P)
    n = (program // columns // rows).to(tl.int64)
    o_p = program // columns % rows * BLOCK_P + tl.arange(0, BLOCK_P)
    o_o = program % columns * BLOCK_O + tl.arange(0, BLOCK_O)
    m_p, m_o = o_p < count, o_o < out
    C = C // ALIGN * ALIGN
    if LAST:
        stride_c = 1
    o_x = (o_p // width).to(tl.int64) * (stride_h // ALIGN * ALIGN)
    o_x += (o_p % width).to(tl.int64) * (stride_w // ALIGN * ALIGN)
    x_rows = x_ptr + n * (stride_n // ALIGN * ALIGN) + o_x[:, None]
    w_rows = w_ptr + o_o.to(tl.int64)[None, :] * C
    total = tl.zeros((BLOCK_P, BLOCK_O), tl.float32)
    for c in range(0, C, BLOCK_K):
        o_c = c + tl.arange(0, BLOCK_K)
        m_c = o_c < C
        b_x = tl.load(x_rows + o_c.to(tl.int64)[None, :] * stride_c, mask=m_p[:, None] & m_c[None, :], other=0.0)
        b_w = tl.load(w_rows + o_c[:, None], mask=m_c[:, None] & m_o[None, :], other=0.0)
        total = tl.dot(b_x, b_w, total, input_precision=PRECISION)
    total += tl.load(b_ptr + o_o, mask=m_o, other=0.0).to(tl.float32)[None, :]
    if activation == 1:
        total = tl.where(total < 0.0, 0.0, total)
    if activation == 2:
        total = silu(total)
    y = y_ptr + (n * count + o_p[:, None]) * out + o_o[None, :]
    tl.store(y, total.to(y_ptr.dtype.element_ty), mask=m_p[:, None] & m_o[None, :])


def pointwise_conv(
    xs: list[Tensor], weights: list[Tensor], biases: list[Tensor], activations: list[str]
) -> list[Tensor]:
    """Compute ``hyperseg.ops.pointwise_conv``; float32, float16 or bfloat16, maps with any strides."""
    if xs[0].dtype not in DTYPES:
        raise TypeError(f"pointwise_conv: x must be float32, float16 or bfloat16 for Triton, got {xs[0].dtype}")
    ys = [channels_last_map(x, w.shape[0], *x.shape[2:]) for x, w in zip(xs, weights, strict=True)]
    weights, biases = [w.contiguous() for w in weights], [b.contiguous() for b in biases]
    codes = [ACTIVATIONS[activation] for activation in activations]
    with torch.cuda.device_of(xs[0]):  # Triton launches on the current device
        for first in range(0, len(xs), MOST):
            part = slice(first, first + MOST)
            _launch(xs[part], weights[part], biases[part], ys[part], codes[part])
    return ys


def _launch(xs: list[Tensor], weights: list[Tensor], biases: list[Tensor], ys: list[Tensor], codes: list[int]) -> None:
    shapes = [(x.shape[0], x.shape[2] * x.shape[3], w.shape[0]) for x, w in zip(xs, weights, strict=True)]
    # The tiles are those of the convolution with the largest output.
    largest = max(range(len(xs)), key=lambda i: shapes[i][0] * shapes[i][1] * shapes[i][2])
    default = tile(*shapes[largest], xs[0].element_size())
    chosen = launch.options(
        "_pointwise_conv_fwd_kernel",
        xs[0],
        default,
        count=len(xs),
        channels=weights[largest].shape[1],
        out=shapes[largest][2],
    )
    begins = [0]
    for n, pixels, out in shapes:
        begins.append(begins[-1] + n * triton.cdiv(pixels, chosen["BLOCK_P"]) * triton.cdiv(out, chosen["BLOCK_O"]))
    _pointwise_conv_fwd_kernel[(begins[-1],)](
        tuple(xs), tuple(weights), tuple(biases), tuple(ys), tuple(begins[:-1]),
        tuple(w.shape[1] for w in weights), tuple(w.shape[0] for w in weights),
        tuple(x.shape[3] for x in xs), tuple(pixels for _, pixels, _ in shapes),
        tuple(x.stride() for x in xs), tuple(codes),
        COUNT=len(xs),
        LAST=all(x.stride(1) == 1 or x.shape[1] == 1 for x in xs),
        ALIGN=min(alignment(x.shape[1], x) for x in xs),
        PRECISION=precision(xs[0].dtype),
        enable_fp_fusion=True,
        **chosen,
    )  # fmt: skip
