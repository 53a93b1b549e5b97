"""Gradients of the depthwise 3x3 convolution (see depthwise_fwd): of its taps, and of the hidden map.

Each hidden value gathers its gradient from the outputs that read it, in a fixed order and without atomics.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyperseg.kernels.language import (
    base,
    block_of_pixels,
    load_map,
    normalised,
    patch_base,
    pixel_offset,
    place,
    reflections,
    store_map,
    store_sums,
    through_relu6,
    wide,
)
from hyperseg.kernels.launch import cdiv
from hyperseg.kernels.parts.depthwise_fwd import FILTER_CANDIDATES, depthwise_options, load_hidden

CANDIDATES = {
    "depthwise_bwd": FILTER_CANDIDATES,
    "depthwise_bwd_weights": FILTER_CANDIDATES,
}


@triton.jit
def _depthwise_bwd_weights_kernel(
    d_ptr,  # [N, CHANNELS, height, width]
    hidden_ptr,
    scale_ptr,
    shift_ptr,
    d_weights_ptr,  # per patch: [HIDDEN, 9]
    size,  # (height, width)
    grid,
    parameters,
    d_strides,
    hidden_strides,
    HIDDEN: tl.constexpr,
    CHANNELS: tl.constexpr,
    PATCH_H: tl.constexpr,
    PATCH_W: tl.constexpr,
    OWN: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_H: tl.constexpr,
):  # fmt: skip
    """d_w2[patch][h, t] = sum over the pixels of the patch of d times the hidden value that tap t read, in order."""
    patch = tl.program_id(0)
    n, py, px = place(patch, grid)
    o_h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    o_t = tl.arange(0, 16)
    d, image = base(d_ptr, n, d_strides[0]), base(hidden_ptr, n, hidden_strides[0])
    b_taps = tl.zeros((16, BLOCK_H), tl.float32)
    for first in range(0, PATCH_H * PATCH_W, BLOCK_M):
        o_r = first + tl.arange(0, BLOCK_M)
        m_r = o_r < PATCH_H * PATCH_W
        y, x = o_r // PATCH_W, o_r % PATCH_W
        pixel = pixel_offset(py * PATCH_H + y, px * PATCH_W + x, d_strides, WIDE)
        b_d = load_map(d, pixel, o_h, m_r, CHANNELS, d_strides, WIDE).to(tl.float32)
        for t in tl.static_range(9):
            b_a = load_hidden(
                image, py, px, y + t // 3 - 1, x + t % 3 - 1, o_h, m_r, size, hidden_strides,
                CHANNELS, PATCH_H, PATCH_W, OWN, WIDE,
            )  # fmt: skip
            seen = tl.sum(b_d * normalised(b_a, o_h, HIDDEN, scale_ptr, shift_ptr), 0)
            b_taps += tl.where((o_t == t)[:, None], seen[None, :], 0.0)
    at = base(d_weights_ptr, patch, parameters) + (o_h[None, :] * 9 + o_t[:, None])
    m = (o_t < 9)[:, None] & (o_h < HIDDEN)[None, :]
    tl.store(at, b_taps.to(d_weights_ptr.dtype.element_ty), mask=m)


@triton.jit
def _finish(
    b_a, image, out, o_hidden, o_out, o_h, m_r, program, scale_ptr, shift_ptr, partial_ptr, hidden_strides, out_strides,
    HIDDEN: tl.constexpr, CHANNELS: tl.constexpr, SUMS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Take the gradient of hidden values back through ReLU6, store it and its sums."""
    b_z = load_map(image, o_hidden, o_h, m_r, CHANNELS, hidden_strides, WIDE).to(tl.float32)
    b_a = through_relu6(b_a, b_z, o_h, HIDDEN, scale_ptr, shift_ptr)
    if SUMS:
        store_sums(partial_ptr, program, b_a, b_z, m_r, o_h, HIDDEN)
    store_map(out, b_a, o_out, o_h, m_r, CHANNELS, out_strides, WIDE)


@triton.jit
def _depthwise_bwd_own_kernel(
    d_ptr,  # [N, CHANNELS, height, width]
    weights_ptr,
    hidden_ptr,  # window map, before its norm
    scale_ptr,
    shift_ptr,
    out_ptr,  # window map
    partial_ptr,
    grid,
    d_strides,
    weights_strides,
    hidden_strides,
    out_strides,
    HIDDEN: tl.constexpr,
    CHANNELS: tl.constexpr,
    PATCH_H: tl.constexpr,  # of d; that of the window map is 2 more
    PATCH_W: tl.constexpr,
    SUMS: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_H: tl.constexpr,
):  # fmt: skip
    """Gradient of the hidden windows before norm and ReLU6: a pixel gathers from the outputs that read it."""
    program = tl.program_id(0)
    n, py, px, wy, wx, m_r = block_of_pixels(program, grid, PATCH_H + 2, PATCH_W + 2, BLOCK_M)
    o_h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    taps = patch_base(weights_ptr, n, py, px, weights_strides)
    d = base(d_ptr, n, d_strides[0])
    b_a = tl.zeros((BLOCK_M, BLOCK_H), tl.float32)
    for t in tl.static_range(9):
        y, x = wy - t // 3, wx - t % 3
        m = m_r & (y >= 0) & (y < PATCH_H) & (x >= 0) & (x < PATCH_W)
        pixel = pixel_offset(py * PATCH_H + y, px * PATCH_W + x, d_strides, WIDE)
        tap = tl.load(taps + o_h * 9 + t, mask=o_h < HIDDEN, other=0.0).to(tl.float32)
        b_a += load_map(d, pixel, o_h, m, CHANNELS, d_strides, WIDE).to(tl.float32) * tap[None, :]
    y, x = py * (PATCH_H + 2) + wy, px * (PATCH_W + 2) + wx
    _finish(
        b_a, base(hidden_ptr, n, hidden_strides[0]), base(out_ptr, n, out_strides[0]),
        pixel_offset(y, x, hidden_strides, WIDE), pixel_offset(y, x, out_strides, WIDE),
        o_h, m_r, program, scale_ptr, shift_ptr, partial_ptr, hidden_strides, out_strides,
        HIDDEN, CHANNELS, SUMS, WIDE,
    )  # fmt: skip


@triton.jit
def _reader(i, size, which):
    """Enumerate the reads of pixels ``i`` of an axis: by three taps, and of each reflection by one tap.

    Return the position at which the pixel is read, the tap, and for which pixels the read exists.
    """
    reflection = tl.where(which < 3, 0, which - 2)
    tap = tl.where(which < 3, which, tl.where(which == 3, 0, 2))
    v, m = reflections(i, size, reflection)
    return v, tap, m


@triton.jit
def _depthwise_bwd_neighbour_kernel(
    d_ptr,  # [N, CHANNELS, height, width]
    weights_ptr,
    hidden_ptr,  # map, before its norm
    scale_ptr,
    shift_ptr,
    out_ptr,  # map
    partial_ptr,
    size,  # (height, width)
    grid,
    d_strides,
    weights_strides,
    hidden_strides,
    out_strides,
    HIDDEN: tl.constexpr,
    CHANNELS: tl.constexpr,
    PATCH_H: tl.constexpr,
    PATCH_W: tl.constexpr,
    SUMS: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_H: tl.constexpr,
):  # fmt: skip
    """The same for a hidden map: outputs of several patches, and through the reflected border, read a pixel."""
    program = tl.program_id(0)
    n, py, px, y, x, m_r = block_of_pixels(program, grid, PATCH_H, PATCH_W, BLOCK_M)
    y, x = py * PATCH_H + y, px * PATCH_W + x
    o_h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    d, taps = base(d_ptr, n, d_strides[0]), base(weights_ptr, n, weights_strides[0])
    b_a = tl.zeros((BLOCK_M, BLOCK_H), tl.float32)
    for i in range(25):
        v_y, tap_y, m_y = _reader(y, size[0], i // 5)
        v_x, tap_x, m_x = _reader(x, size[1], i % 5)
        o_y, o_x = v_y + 1 - tap_y, v_x + 1 - tap_x
        m = m_r & m_y & m_x & (o_y >= 0) & (o_y < size[0]) & (o_x >= 0) & (o_x < size[1])
        if tl.max(m.to(tl.int32), 0) > 0:
            pixel = pixel_offset(o_y, o_x, d_strides, WIDE)
            patch = (o_y // PATCH_H).to(tl.int64) * weights_strides[1]
            patch += (o_x // PATCH_W).to(tl.int64) * weights_strides[2]
            at = taps + (patch[:, None] + (o_h * 9)[None, :] + (tap_y * 3 + tap_x))
            tap = tl.load(at, mask=m[:, None] & (o_h < HIDDEN)[None, :], other=0.0).to(tl.float32)
            b_a += load_map(d, pixel, o_h, m, CHANNELS, d_strides, WIDE).to(tl.float32) * tap
    _finish(
        b_a, base(hidden_ptr, n, hidden_strides[0]), base(out_ptr, n, out_strides[0]),
        pixel_offset(y, x, hidden_strides, WIDE), pixel_offset(y, x, out_strides, WIDE),
        o_h, m_r, program, scale_ptr, shift_ptr, partial_ptr, hidden_strides, out_strides,
        HIDDEN, CHANNELS, SUMS, WIDE,
    )  # fmt: skip


def depthwise_backward_weights(
    d: Tensor, hidden_map: Tensor, first: int, norm: tuple[Tensor, Tensor], hidden: int, d_weights: Tensor, halo: str
) -> None:
    """Fill the taps' gradients in ``d_weights`` [N, fh, fw, P], contiguous, starting at ``first``."""
    n, fh, fw, parameters = d_weights.shape
    height, width = d.shape[2:]
    patch_h, patch_w = height // fh, width // fw
    chosen = depthwise_options("depthwise_bwd_weights", d, hidden, patch_h * patch_w)
    with torch.cuda.device_of(d):
        _depthwise_bwd_weights_kernel[(n * fh * fw, cdiv(hidden, chosen["BLOCK_H"]))](
            d, hidden_map, *norm, d_weights[..., first:],
            (height, width), (fh, fw), parameters, d.stride(), hidden_map.stride(),
            HIDDEN=hidden,
            CHANNELS=d.shape[1],
            PATCH_H=patch_h,
            PATCH_W=patch_w,
            OWN=halo == "own",
            WIDE=wide(hidden_map, d),
            enable_fp_fusion=True,
            **chosen,
        )  # fmt: skip


def depthwise_backward(
    d: Tensor,
    weights: Tensor,
    first: int,
    hidden_map: Tensor,
    norm: tuple[Tensor, Tensor],
    hidden: int,
    out: Tensor,
    halo: str,
    *,
    partials: bool = False,
) -> Tensor | None:
    """Fill ``out``, like the hidden map, with its gradient before norm and ReLU6.

    Returns:
        With ``partials`` rows of sums of it and of it times the hidden map; see ``store_sums``.
    """
    n, fh, fw, _ = weights.shape
    height, width = d.shape[2:]
    patch_h, patch_w = height // fh, width // fw
    own = halo == "own"
    pixels = (patch_h + 2 * own) * (patch_w + 2 * own)
    chosen = depthwise_options("depthwise_bwd", d, hidden, pixels)
    rows = n * fh * fw * cdiv(pixels, chosen["BLOCK_M"])
    found = d.new_empty((rows, 2, hidden), dtype=torch.float32) if partials else None
    kernel = _depthwise_bwd_own_kernel if own else _depthwise_bwd_neighbour_kernel
    with torch.cuda.device_of(d):
        kernel[(rows, cdiv(out.shape[1], chosen["BLOCK_H"]))](
            d, weights[..., first:], hidden_map, *norm, out, d if found is None else found,
            *(() if own else ((height, width),)), (fh, fw),
            d.stride(), weights.stride(), hidden_map.stride(), out.stride(),
            HIDDEN=hidden,
            CHANNELS=out.shape[1],
            PATCH_H=patch_h,
            PATCH_W=patch_w,
            SUMS=partials,
            WIDE=wide(hidden_map, d, out),
            enable_fp_fusion=True,
            **chosen,
        )  # fmt: skip
    return found
