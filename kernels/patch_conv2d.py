"""``patch_conv2d`` in Triton: a program computes some pixels of one patch, with that patch's own weights."""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyperseg.kernels import launch
from hyperseg.kernels.language import at, base, index, patch_base, pixel_offset, place, reflect
from hyperseg.kernels.launch import DTYPES, block, cdiv, precision
from hyperseg.kernels.parts.maps import output_map

WIDE = tl.constexpr(True)  # these kernels take fewer registers with int64 addresses
MOST_TERMS = 2048  # multiplications that a program without tl.dot holds


class Geometry(NamedTuple):
    height: int  # of the map
    width: int
    fh: int  # patches down the map
    fw: int
    ph: int  # pixels down a patch
    pw: int
    groups: int
    inputs: int  # per group
    outputs: int  # per group
    dilation_h: int
    dilation_w: int


@triton.jit
def group_tile(geometry, pixels, channels, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """Return a program's part: (image, patch row, patch column, group, pixels, channels of the group)."""
    tile = tl.program_id(0)
    parts, runs = tl.cdiv(channels, BLOCK_C), tl.cdiv(pixels, BLOCK_P)
    part, tile = tile % parts, tile // parts
    group, tile = tile % geometry.groups, tile // geometry.groups
    run, patch = tile % runs, tile // runs
    n, py, px = place(patch, (geometry.fh, geometry.fw))
    return n, py, px, group, run * BLOCK_P + tl.arange(0, BLOCK_P), part * BLOCK_C + tl.arange(0, BLOCK_C)


@triton.jit
def _padded(o, size, MODE: tl.constexpr):
    """Return the pixel that padding shows at ``o``; -1 where it shows zero."""
    if MODE == "reflect":
        shown = reflect(o, size)
    elif MODE == "replicate":
        shown = tl.minimum(tl.maximum(o, 0), size - 1)
    elif MODE == "circular":
        shown = (o + size) % size
    else:
        shown = tl.where((o >= 0) & (o < size), o, -1)
    return shown


@triton.jit
def tapped(y, x, tap, geometry, KH: tl.constexpr, KW: tl.constexpr, MODE: tl.constexpr):
    """Return the pixels that a tap reads for pixels (y, x) of the map: (row, column, mask)."""
    row = _padded(y + (tap // KW - KH // 2) * geometry.dilation_h, geometry.height, MODE)
    column = _padded(x + (tap % KW - KW // 2) * geometry.dilation_w, geometry.width, MODE)
    return row, column, (row >= 0) & (column >= 0)


@triton.jit
def group_weights(ptr, n, py, px, group, geometry, strides, TAPS: tl.constexpr):
    """Return the address of the weights of a group, in one patch."""
    return base(patch_base(ptr, n, py, px, strides), group * geometry.outputs * geometry.inputs * TAPS, strides[3])


@triton.jit
def weights_at(weights, o_out, o_in, tap, geometry, strides, TAPS: tl.constexpr):
    """Return the addresses of weights (output, input, tap) of a group."""
    return weights + ((index(o_out, WIDE) * geometry.inputs + o_in) * TAPS + tap) * strides[3]


@triton.jit
def multiply(a, b, acc, DOT: tl.constexpr, PRECISION: tl.constexpr):
    """acc + a @ b: by ``tl.dot``, or, with few channels or pixels, term by term, summed by ``_total``."""
    if DOT:
        result = tl.dot(a, b, acc, input_precision=PRECISION)
    else:
        result = acc + a.to(tl.float32)[:, :, None] * b.to(tl.float32)[None, :, :]
    return result


@triton.jit
def zeros(M: tl.constexpr, K: tl.constexpr, N: tl.constexpr, DOT: tl.constexpr):
    if DOT:
        acc = tl.zeros((M, N), tl.float32)
    else:
        acc = tl.zeros((M, K, N), tl.float32)
    return acc


@triton.jit
def total_of(acc, DOT: tl.constexpr):
    if DOT:
        total = acc
    else:
        total = tl.sum(acc, 1)
    return total


@triton.jit
def _patch_conv2d_fwd_kernel(
    x_ptr,  # [N, groups * inputs, H, W], any strides
    weights_ptr,  # [N, fh, fw, (groups * outputs) * inputs * KH * KW], any strides
    bias_ptr,  # [groups * outputs], any stride
    out_ptr,  # [N, groups * outputs, H, W], any strides
    geometry,
    x_strides,
    weights_strides,
    bias_stride,
    out_strides,
    KH: tl.constexpr,
    KW: tl.constexpr,
    MODE: tl.constexpr,
    BIAS: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    """out[p, o] = bias[o] + sum over i and taps t of weights[o, i, t] * x[pixel p shifted by t, i], o and i of a group.

    A program: some pixels of a patch, some outputs of a group.
    """
    pixels, inputs = geometry.ph * geometry.pw, geometry.inputs
    n, py, px, group, o_p, o_o = group_tile(geometry, pixels, geometry.outputs, BLOCK_P, BLOCK_O)
    m_p, m_o = o_p < pixels, o_o < geometry.outputs
    y, x = py * geometry.ph + o_p // geometry.pw, px * geometry.pw + o_p % geometry.pw
    image = base(base(x_ptr, n, x_strides[0]), group * inputs, x_strides[1])
    weights = group_weights(weights_ptr, n, py, px, group, geometry, weights_strides, KH * KW)
    acc = zeros(BLOCK_P, BLOCK_I, BLOCK_O, DOT)
    for tap in range(KH * KW):
        row, column, m_x = tapped(y, x, tap, geometry, KH, KW, MODE)
        pixel = pixel_offset(row, column, x_strides, WIDE)
        m_x = m_x & m_p
        for i in range(0, inputs, BLOCK_I):
            o_i = i + tl.arange(0, BLOCK_I)
            m_i = o_i < inputs
            b_x = tl.load(at(image, pixel, o_i, x_strides, WIDE), mask=m_x[:, None] & m_i[None, :], other=0.0)
            o_w = weights_at(weights, o_o[None, :], o_i[:, None], tap, geometry, weights_strides, KH * KW)
            b_w = tl.load(o_w, mask=m_i[:, None] & m_o[None, :], other=0.0)
            acc = multiply(b_x, b_w, acc, DOT, PRECISION)

    total = total_of(acc, DOT)
    o_o += group * geometry.outputs
    if BIAS:
        total += tl.load(bias_ptr + o_o * bias_stride, mask=m_o, other=0.0).to(tl.float32)[None, :]
    out = at(base(out_ptr, n, out_strides[0]), pixel_offset(y, x, out_strides, WIDE), o_o, out_strides, WIDE)
    tl.store(out, total.to(out_ptr.dtype.element_ty), mask=m_p[:, None] & m_o[None, :])


def check(x: Tensor, weights: Tensor) -> None:
    if x.dim() != 4 or weights.dim() != 4:
        raise ValueError(
            f"patch_conv2d: expected a map [N, C, H, W] and weights [N, fh, fw, P], got {list(x.shape)} and "
            f"{list(weights.shape)}"
        )
    if x.dtype not in DTYPES:
        raise TypeError(f"patch_conv2d: x must be float32, float16 or bfloat16 for Triton, got {x.dtype}")


def geometry_of(x: Tensor, weights: Tensor, out_channels: int, groups: int, dilation: list[int]) -> Geometry:
    _, channels, height, width = x.shape
    fh, fw = weights.shape[1:3]
    widths = (groups, channels // groups, out_channels // groups)
    return Geometry(height, width, fh, fw, height // fh, width // fw, *widths, *dilation)


def options_of(kernel: str, x: Tensor, summed: str, **sizes: int) -> tuple[launch.Options, bool]:
    """Return block sizes for pixels P, inputs I and outputs O, one of which is ``summed``, and whether to use DOT."""
    dot = sizes["P"] >= 16 and min(sizes["I"], sizes["O"]) >= 8
    if dot:
        most = 32 if x.dtype == torch.float32 else 64  # in float32, larger ones use the stack on sm_80
        deep = 16 if x.dtype == torch.float32 and summed == "O" else 32  # the same, with Triton 3.6
        blocks = {name: block(size, most=deep if name == summed else most) for name, size in sizes.items()}
    else:
        blocks = {summed: block(sizes[summed], 1, 16)}
        left = MOST_TERMS // blocks[summed]
        for name in [name for name in sizes if name != summed]:
            blocks[name] = block(sizes[name], 1, min(left, 64 if name == "O" else 32))
            left //= blocks[name]
    default = {f"BLOCK_{name}": size for name, size in blocks.items()} | {"num_warps": 4, "num_stages": 2}
    signature = {"pixels": sizes["P"], "inputs": sizes["I"], "outputs": sizes["O"]}
    return launch.options(kernel, x, default, **signature), dot


def tiles_of(options: launch.Options, **sizes: int) -> int:
    tiles = 1
    for name, size in sizes.items():
        tiles *= cdiv(size, options[f"BLOCK_{name}"])
    return tiles


def constants_of(x: Tensor, kernel_size: list[int], dot: bool) -> dict[str, Any]:
    constants: dict[str, Any] = {"KH": kernel_size[0], "KW": kernel_size[1], "DOT": dot}
    return constants | {"PRECISION": precision(x.dtype), "enable_fp_fusion": True}


def patch_conv2d(
    x: Tensor,
    weights: Tensor,
    bias: Tensor | None,
    out_channels: int,
    kernel_size: list[int],
    groups: int,
    dilation: list[int],
    padding_mode: str,
) -> Tensor:
    """Convolve each pixel with the weights of its patch: [N, out_channels, H, W], in the memory format of x.

    Args:
        x: [N, C, H, W] in float32, float16 or bfloat16, with any strides.
        weights: [N, fh, fw, P], with any strides: P is [out_channels, C / groups, kernel height, kernel width], flat.
        bias: [out_channels], or None.
    """
    check(x, weights)
    out = output_map(x, out_channels)
    if out.numel() == 0:
        return out
    g = geometry_of(x, weights, out_channels, groups, dilation)
    chosen, dot = options_of("patch_conv2d_fwd", x, "I", P=g.ph * g.pw, I=g.inputs, O=g.outputs)
    tiles = groups * tiles_of(chosen, P=g.ph * g.pw, O=g.outputs)
    with torch.cuda.device_of(x):
        _patch_conv2d_fwd_kernel[(x.shape[0] * g.fh * g.fw * tiles,)](
            x, weights, x if bias is None else bias, out, g,
            x.stride(), weights.stride(), 0 if bias is None else bias.stride(0), out.stride(),
            MODE=padding_mode,
            BIAS=bias is not None,
            **constants_of(x, kernel_size, dot),
            **chosen,
        )  # fmt: skip
    return out
