"""The gradient of ``patch_conv2d`` in Triton.

Each patch first computes the gradient of its window: its pixels and those around it that it reads. Then each pixel of
the map gathers from all windows that show it, also in the padding. With a 1x1 kernel the window is the patch, and the
first step writes the gradient itself.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyperseg.kernels.language import at, base, pixel_offset, place
from hyperseg.kernels.launch import cdiv
from hyperseg.kernels.patch_conv2d import (
    WIDE,
    Geometry,
    check,
    constants_of,
    geometry_of,
    group_tile,
    group_weights,
    multiply,
    options_of,
    tapped,
    tiles_of,
    total_of,
    weights_at,
    zeros,
)

SUM_BLOCK = 128  # pixels per program of the last kernel


@triton.jit
def _shown(pixel, k, halo, size, MODE: tl.constexpr):
    """Return the ``k``-th place at which a padded axis shows ``pixel``, and whether it does; k = 0 is itself."""
    if MODE == "reflect":
        position = tl.where(k == 1, -pixel, 2 * (size - 1) - pixel)
        shown = tl.where(k == 1, pixel > 0, pixel < size - 1)
    elif MODE == "circular":
        position = tl.where(k == 1, pixel - size, pixel + size)
        shown = pixel == pixel
    else:  # replicated: ``halo`` times the first pixel, then the last one
        position = tl.where(k <= halo, pixel - k, pixel + k - halo)
        shown = tl.where(k <= halo, pixel == 0, pixel == size - 1)
    shown = shown & (position >= -halo) & (position < size + halo)
    return tl.where(k == 0, pixel, position), tl.where(k == 0, pixel == pixel, shown)


@triton.jit
def _patch_conv2d_bwd_windows_kernel(
    grad_ptr,  # [N, groups * outputs, H, W], any strides
    weights_ptr,  # [N, fh, fw, (groups * outputs) * inputs * KH * KW], any strides
    windows_ptr,  # [N, groups * inputs, wh, ww, fh, fw], wh = ph + 2 * halo_h, any strides
    geometry,
    grad_strides,
    weights_strides,
    windows_strides,
    KH: tl.constexpr,
    KW: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    """windows[p, i] = sum over o and taps t of grad[p shifted back by t, o] * weights[o, i, t], within one patch."""
    ph, pw, inputs, outputs = geometry.ph, geometry.pw, geometry.inputs, geometry.outputs
    wh, ww = ph + (KH // 2) * 2 * geometry.dilation_h, pw + (KW // 2) * 2 * geometry.dilation_w
    n, py, px, group, o_p, o_i = group_tile(geometry, wh * ww, inputs, BLOCK_P, BLOCK_I)
    m_p, m_i = o_p < wh * ww, o_i < inputs
    wy, wx = o_p // ww, o_p % ww
    grad = base(base(grad_ptr, n, grad_strides[0]), group * outputs, grad_strides[1])
    grad = base(base(grad, py * ph, grad_strides[2]), px * pw, grad_strides[3])
    weights = group_weights(weights_ptr, n, py, px, group, geometry, weights_strides, KH * KW)
    acc = zeros(BLOCK_P, BLOCK_O, BLOCK_I, DOT)
    for tap in range(KH * KW):
        y, x = wy - tap // KW * geometry.dilation_h, wx - tap % KW * geometry.dilation_w
        m_grad = m_p & (y >= 0) & (y < ph) & (x >= 0) & (x < pw)
        pixel = pixel_offset(y, x, grad_strides, WIDE)
        for o in range(0, outputs, BLOCK_O):
            o_o = o + tl.arange(0, BLOCK_O)
            m_o = o_o < outputs
            b_grad = tl.load(at(grad, pixel, o_o, grad_strides, WIDE), mask=m_grad[:, None] & m_o[None, :], other=0.0)
            o_w = weights_at(weights, o_o[:, None], o_i[None, :], tap, geometry, weights_strides, KH * KW)
            b_w = tl.load(o_w, mask=m_o[:, None] & m_i[None, :], other=0.0)
            acc = multiply(b_grad, b_w, acc, DOT, PRECISION)

    windows = base(base(windows_ptr, n, windows_strides[0]), group * inputs, windows_strides[1])
    windows = base(base(windows, py, windows_strides[4]), px, windows_strides[5])
    out = at(windows, pixel_offset(wy, wx, windows_strides, WIDE), o_i, windows_strides, WIDE)
    tl.store(out, total_of(acc, DOT).to(windows_ptr.dtype.element_ty), mask=m_p[:, None] & m_i[None, :])


@triton.jit
def _patch_conv2d_bwd_x_kernel(
    windows_ptr,  # [N * C, fh, fw, ph + 2 * halo_h, pw + 2 * halo_w], float32, contiguous
    d_x_ptr,  # [N * C, H, W], contiguous
    values,  # N * C * H * W
    geometry,
    halo,
    times,  # upper bounds on how often a padded axis shows a pixel, itself included
    MODE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """d_x[c, y, x] = sum over the windows that show (y, x), and the places where they do, of windows[c, place]."""
    height, width, fh, fw = geometry.height, geometry.width, geometry.fh, geometry.fw
    ph, pw = geometry.ph, geometry.pw
    o = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m = o < values
    channel, y, x = o // width // height, (o // width % height).to(tl.int32), (o % width).to(tl.int32)
    wh, ww = ph + 2 * halo[0], pw + 2 * halo[1]
    acc = tl.zeros((BLOCK,), tl.float32)
    for k_h in range(times[0]):
        place_y, m_y = _shown(y, k_h, halo[0], height, MODE)
        # The last window to show a row is its own patch's or, in the padding, the one before; it begins a halo above.
        last_h = (place_y + halo[0]) // ph
        for k_w in range(times[1]):
            place_x, m_x = _shown(x, k_w, halo[1], width, MODE)
            last_w = (place_x + halo[1]) // pw
            for back_h in range((wh + ph - 1) // ph):
                i = last_h - back_h
                row = place_y + halo[0] - i * ph
                m_row = m & m_y & (i >= 0) & (i < fh) & (row < wh)
                for back_w in range((ww + pw - 1) // pw):
                    j = last_w - back_w
                    column = place_x + halo[1] - j * pw
                    shown = m_row & m_x & (j >= 0) & (j < fw) & (column < ww)
                    window = (channel * fh + i) * fw + j
                    acc += tl.load(windows_ptr + (window * wh + row) * ww + column, mask=shown, other=0.0)
    tl.store(d_x_ptr + o, acc.to(d_x_ptr.dtype.element_ty), mask=m)


@triton.jit
def _patch_conv2d_bwd_weights_kernel(
    grad_ptr,  # [N, groups * outputs, H, W], any strides
    x_ptr,  # [N, groups * inputs, H, W], any strides
    d_weights_ptr,  # [N, fh, fw, groups * outputs, inputs, KH * KW], contiguous
    geometry,
    grad_strides,
    x_strides,
    KH: tl.constexpr,
    KW: tl.constexpr,
    MODE: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    """d_weights[o, i, t] = sum over the pixels p of the patch, in order, of grad[p, o] * x[p shifted by t, i]."""
    ph, pw, inputs, outputs = geometry.ph, geometry.pw, geometry.inputs, geometry.outputs
    tile = tl.program_id(0)
    tap, tile = tile % (KH * KW), tile // (KH * KW)
    part_i, tile = tile % tl.cdiv(inputs, BLOCK_I), tile // tl.cdiv(inputs, BLOCK_I)
    part_o, tile = tile % tl.cdiv(outputs, BLOCK_O), tile // tl.cdiv(outputs, BLOCK_O)
    group, patch = tile % geometry.groups, tile // geometry.groups
    n, py, px = place(patch, (geometry.fh, geometry.fw))
    o_i = part_i * BLOCK_I + tl.arange(0, BLOCK_I)
    o_o = part_o * BLOCK_O + tl.arange(0, BLOCK_O)
    m_i, m_o = o_i < inputs, o_o < outputs
    grad = base(base(grad_ptr, n, grad_strides[0]), group * outputs + o_o, grad_strides[1])
    image = base(base(x_ptr, n, x_strides[0]), group * inputs + o_i, x_strides[1])
    acc = zeros(BLOCK_O, BLOCK_P, BLOCK_I, DOT)
    for p in range(0, ph * pw, BLOCK_P):
        o_p = p + tl.arange(0, BLOCK_P)
        m_p = o_p < ph * pw
        y, x = py * ph + o_p // pw, px * pw + o_p % pw
        pixel = pixel_offset(y, x, grad_strides, WIDE)
        b_grad = tl.load(grad[:, None] + pixel[None, :], mask=m_o[:, None] & m_p[None, :], other=0.0)
        row, column, m_x = tapped(y, x, tap, geometry, KH, KW, MODE)
        pixel, m_x = pixel_offset(row, column, x_strides, WIDE), m_x & m_p
        b_x = tl.load(image[None, :] + pixel[:, None], mask=m_x[:, None] & m_i[None, :], other=0.0)
        acc = multiply(b_grad, b_x, acc, DOT, PRECISION)

    filters = (patch.to(tl.int64) * geometry.groups * outputs + group * outputs + o_o)[:, None] * inputs
    out = d_weights_ptr + (filters + o_i[None, :]) * (KH * KW) + tap
    tl.store(out, total_of(acc, DOT).to(d_weights_ptr.dtype.element_ty), mask=m_o[:, None] & m_i[None, :])


def patch_conv2d_backward(
    grad: Tensor,
    x: Tensor,
    weights: Tensor,
    bias: Tensor | None,
    out_channels: int,
    kernel_size: list[int],
    groups: int,
    dilation: list[int],
    padding_mode: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weights and bias (empty without one), contiguous; sums are taken in a fixed order.

    Args:
        grad: [N, out_channels, H, W], with any strides; the rest as in :func:`patch_conv2d`.
    """
    check(x, weights)
    d_x, d_weights = x.new_empty(x.shape), weights.new_empty(weights.shape)
    if x.numel():
        g = geometry_of(x, weights, out_channels, groups, dilation)
        with torch.cuda.device_of(x):
            _differentiate_x(grad, weights, d_x, g, kernel_size, padding_mode)
            _differentiate_weights(grad, x, d_weights, g, kernel_size, padding_mode)
    d_bias = x.new_empty(0) if bias is None else grad.sum((0, 2, 3), dtype=torch.float32).to(bias.dtype)
    return d_x, d_weights, d_bias


def _differentiate_x(
    grad: Tensor, weights: Tensor, d_x: Tensor, g: Geometry, kernel_size: list[int], padding_mode: str
) -> None:
    n, channels = d_x.shape[:2]
    halo = (g.dilation_h * (kernel_size[0] // 2), g.dilation_w * (kernel_size[1] // 2))
    wh, ww = g.ph + 2 * halo[0], g.pw + 2 * halo[1]
    if halo == (0, 0):
        windows = d_x.view(n, channels, g.fh, g.ph, g.fw, g.pw).permute(0, 1, 3, 5, 2, 4)
    else:
        windows = d_x.new_empty((n, channels, g.fh, g.fw, wh, ww), dtype=torch.float32).permute(0, 1, 4, 5, 2, 3)
    chosen, dot = options_of("patch_conv2d_bwd_windows", d_x, "O", P=wh * ww, I=g.inputs, O=g.outputs)
    tiles = g.groups * tiles_of(chosen, P=wh * ww, I=g.inputs)
    _patch_conv2d_bwd_windows_kernel[(n * g.fh * g.fw * tiles,)](
        grad, weights, windows, g, grad.stride(), weights.stride(), windows.stride(),
        **constants_of(d_x, kernel_size, dot),
        **chosen,
    )  # fmt: skip
    if halo == (0, 0):
        return
    times = (_times_shown(halo[0], padding_mode), _times_shown(halo[1], padding_mode))
    _patch_conv2d_bwd_x_kernel[(cdiv(d_x.numel(), SUM_BLOCK),)](
        windows, d_x, d_x.numel(), g, halo, times,
        MODE=padding_mode,
        BLOCK=SUM_BLOCK,
        num_warps=4,
        enable_fp_fusion=True,
    )  # fmt: skip


def _times_shown(halo: int, padding_mode: str) -> int:
    """Return how often a padded axis shows a pixel at most."""
    if halo == 0:
        return 1
    return {"zeros": 1, "replicate": 1 + 2 * halo}.get(padding_mode, 3)


def _differentiate_weights(
    grad: Tensor, x: Tensor, d_weights: Tensor, g: Geometry, kernel_size: list[int], padding_mode: str
) -> None:
    chosen, dot = options_of("patch_conv2d_bwd_weights", x, "P", P=g.ph * g.pw, I=g.inputs, O=g.outputs)
    tiles = g.groups * kernel_size[0] * kernel_size[1] * tiles_of(chosen, I=g.inputs, O=g.outputs)
    _patch_conv2d_bwd_weights_kernel[(x.shape[0] * g.fh * g.fw * tiles,)](
        grad, x, d_weights, g, grad.stride(), x.stride(),
        MODE=padding_mode,
        **constants_of(x, kernel_size, dot),
        **chosen,
    )  # fmt: skip
