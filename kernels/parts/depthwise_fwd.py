"""Depthwise 3x3 convolution of an inverted residual with each patch's own taps, alone or with the projection.

The input is the hidden map: with halo ``"own"`` a window map, computed around each patch with its own weights; with
``"neighbour"`` a plain map whose border is reflected. Triton cannot shift a tile, so each tap loads its own tile; the
nine overlapping loads hit the L1 cache.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyperseg.kernels import launch
from hyperseg.kernels.language import (
    activate,
    base,
    block_of_pixels,
    index,
    load_map,
    normalised,
    patch_base,
    pixel_offset,
    place,
    reflect,
    store_map,
    store_moments,
    wide,
)
from hyperseg.kernels.launch import block, cdiv, precision

TENSOR_CORES = ("_depthwise_project_kernel",)
# For the kernels without a GEMM, here and in depthwise_bwd.
FILTER_CANDIDATES = [
    {"BLOCK_M": m, "BLOCK_H": h, "num_warps": w} for m in (16, 64) for h in (16, 32, 64) for w in (2, 4)
]
CANDIDATES = {
    "depthwise_project": [
        {"BLOCK_Y": rows, "BLOCK_X": columns, "BLOCK_H": hidden, "num_warps": warps}
        for rows, columns in ((1, 16), (2, 8), (4, 8), (4, 16), (8, 8))
        for hidden in (16, 32)
        for warps in (1, 2, 4)
    ],
    "depthwise_fwd": FILTER_CANDIDATES,
}


@triton.jit
def load_hidden(
    image, py, px, y, x, o_h, m_r, size, strides,
    CHANNELS: tl.constexpr, PATCH_H: tl.constexpr, PATCH_W: tl.constexpr, OWN: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Load [pixels, hidden] at pixels (y, x) of a patch, each from -1 to the patch's size inclusive."""
    if OWN:
        row, column = py * (PATCH_H + 2) + y + 1, px * (PATCH_W + 2) + x + 1
    else:
        row, column = reflect(py * PATCH_H + y, size[0]), reflect(px * PATCH_W + x, size[1])
    return load_map(image, pixel_offset(row, column, strides, WIDE), o_h, m_r, CHANNELS, strides, WIDE)


@triton.jit
def _filtered(
    image, taps, py, px, y, x, o_h, m_r, size, strides, scale_ptr, shift_ptr,
    HIDDEN: tl.constexpr, CHANNELS: tl.constexpr, PATCH_H: tl.constexpr, PATCH_W: tl.constexpr, OWN: tl.constexpr,
    NORMALISED: tl.constexpr, WIDE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """Return [pixels, hidden]: the sum of nine shifted blocks of hidden values times nine taps."""
    b_z = tl.zeros((BLOCK_M, BLOCK_H), tl.float32)
    for t in tl.static_range(9):
        b_a = load_hidden(
            image, py, px, y + t // 3 - 1, x + t % 3 - 1, o_h, m_r, size, strides,
            CHANNELS, PATCH_H, PATCH_W, OWN, WIDE,
        )  # fmt: skip
        if NORMALISED:
            b_a = normalised(b_a, o_h, HIDDEN, scale_ptr, shift_ptr)
        tap = tl.load(taps + o_h * 9 + t, mask=o_h < HIDDEN, other=0.0).to(tl.float32)
        b_z += b_a.to(tl.float32) * tap[None, :]
    return b_z


@triton.jit
def _hidden_pixel(i, patch, size, patch_size, OWN: tl.constexpr):
    """Return the pixel of an axis of the hidden map at ``i`` of a patch, from -1 to the patch's size inclusive."""
    if OWN:
        return patch * (patch_size + 2) + i + 1
    return reflect(patch * patch_size + i, size)


@triton.jit
def _stacked(rows):
    """Return one below the other 1, 2, 4, 8 or 16 blocks [columns, channels]."""
    for _ in tl.static_range(4):
        if len(rows) > 1:
            halves = ()
            for i in tl.static_range(len(rows) // 2):
                both = tl.join(rows[2 * i], rows[2 * i + 1]).permute(2, 0, 1)
                halves = halves + (both.reshape(2 * both.shape[1], both.shape[2]),)
            rows = halves
    return rows[0]


@triton.jit
def _depthwise_project_kernel(
    hidden_ptr,  # [N, CHANNELS >= HIDDEN, ...] after ReLU6; a window map where OWN
    weights_ptr,  # per patch: [HIDDEN, 9], then [OUT, HIDDEN]
    bias_ptr,  # [HIDDEN + OUT]
    out_ptr,  # [N, OUT, height, width]
    size,  # (height, width)
    grid,
    hidden_strides,
    weights_strides,
    out_strides,
    HIDDEN: tl.constexpr,
    CHANNELS: tl.constexpr,
    OUT: tl.constexpr,
    PATCH_H: tl.constexpr,
    PATCH_W: tl.constexpr,
    OWN: tl.constexpr,
    BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_Y: tl.constexpr,  # rows of a patch that a program computes
    BLOCK_X: tl.constexpr,  # columns
    BLOCK_H: tl.constexpr,
    BLOCK_O: tl.constexpr,
):  # fmt: skip
    """out = W3 relu6(depthwise(hidden, w2) + b2) + b3 with the weights of each patch.

    A row of hidden values is loaded at three columns and added to the three rows of sums that it belongs to.
    """
    DOWN: tl.constexpr = (PATCH_H + BLOCK_Y - 1) // BLOCK_Y
    ACROSS: tl.constexpr = (PATCH_W + BLOCK_X - 1) // BLOCK_X
    part = tl.program_id(0) % (DOWN * ACROSS)
    n, py, px = place(tl.program_id(0) // (DOWN * ACROSS), grid)
    first_y = part // ACROSS * BLOCK_Y
    o_x = part % ACROSS * BLOCK_X + tl.arange(0, BLOCK_X)
    o_o = tl.arange(0, BLOCK_O)
    taps = patch_base(weights_ptr, n, py, px, weights_strides)
    project = taps + 9 * HIDDEN
    columns, o_rows = (), ()
    image = base(hidden_ptr, n, hidden_strides[0])
    image += (index(tl.arange(0, BLOCK_H), WIDE) * hidden_strides[1])[None, :]
    for dx in tl.static_range(3):
        x = _hidden_pixel(tl.minimum(o_x + (dx - 1), PATCH_W), px, size[1], PATCH_W, OWN)
        columns = columns + (image + (index(x, WIDE) * hidden_strides[3])[:, None],)
    for row in tl.static_range(BLOCK_Y + 2):
        y = _hidden_pixel(tl.minimum(first_y + (row - 1), PATCH_H), py, size[0], PATCH_H, OWN)
        o_rows = o_rows + (index(y, WIDE) * hidden_strides[2],)
    b_out = tl.zeros((BLOCK_Y * BLOCK_X, BLOCK_O), tl.float32)
    for h in range(0, HIDDEN, BLOCK_H):
        o_h = h + tl.arange(0, BLOCK_H)
        b_b = tl.zeros((BLOCK_X, BLOCK_H), tl.float32)
        if BIAS:
            b_b += tl.load(bias_ptr + o_h, mask=o_h < HIDDEN, other=0.0).to(tl.float32)[None, :]
        tap, sums = (), ()
        for t in tl.static_range(9):
            tap = tap + (tl.load((taps + o_h * 9) + t, mask=o_h < HIDDEN, other=0.0).to(tl.float32)[None, :],)
        for _ in tl.static_range(BLOCK_Y):
            sums = sums + (b_b,)
        for row in tl.static_range(BLOCK_Y + 2):
            o_row = o_rows[row] + index(tl.cast(h, tl.int32), WIDE) * hidden_strides[1]
            for dx in tl.static_range(3):
                if CHANNELS % BLOCK_H == 0:
                    b_a = tl.load(columns[dx] + o_row).to(tl.float32)
                else:
                    b_a = tl.load(columns[dx] + o_row, mask=(o_h < CHANNELS)[None, :], other=0.0).to(tl.float32)
                added = ()
                for i in tl.static_range(BLOCK_Y):
                    if i <= row and row <= i + 2:
                        added = added + (sums[i] + b_a * tap[(row - i) * 3 + dx],)
                    else:
                        added = added + (sums[i],)
                sums = added
        rows = ()
        for i in tl.static_range(BLOCK_Y):
            rows = rows + (activate(sums[i], 2).to(weights_ptr.dtype.element_ty),)
        m = (o_h < HIDDEN)[:, None] & (o_o < OUT)[None, :]
        b_w = tl.load(project + o_h[:, None] + (o_o * HIDDEN)[None, :], mask=m, other=0.0)
        b_out = tl.dot(_stacked(rows), b_w, b_out, input_precision=PRECISION)
    if BIAS:
        b_out += tl.load(bias_ptr + HIDDEN + o_o, mask=o_o < OUT, other=0.0).to(tl.float32)[None, :]
    o_r = tl.arange(0, BLOCK_Y * BLOCK_X)
    y, x = first_y + o_r // BLOCK_X, part % ACROSS * BLOCK_X + o_r % BLOCK_X
    pixel = pixel_offset(py * PATCH_H + y, px * PATCH_W + x, out_strides, WIDE)
    m_r = (y < PATCH_H) & (x < PATCH_W)
    store_map(base(out_ptr, n, out_strides[0]), b_out, pixel, o_o, m_r, OUT, out_strides, WIDE)


@triton.jit
def _depthwise_fwd_kernel(
    hidden_ptr,  # before its norm
    weights_ptr,  # per patch: [HIDDEN, 9]
    scale_ptr,  # [HIDDEN], of the norm applied to the input
    shift_ptr,
    out_ptr,  # [N, CHANNELS >= HIDDEN, height, width], before the next norm
    partial_ptr,  # float32 [programs, 3, HIDDEN]
    size,  # (height, width)
    grid,
    hidden_strides,
    weights_strides,
    out_strides,
    HIDDEN: tl.constexpr,
    CHANNELS: tl.constexpr,
    PATCH_H: tl.constexpr,
    PATCH_W: tl.constexpr,
    OWN: tl.constexpr,
    MOMENTS: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_H: tl.constexpr,
):  # fmt: skip
    """out = depthwise(relu6(scale * hidden + shift), w2), and its moments."""
    program = tl.program_id(0)
    n, py, px, y, x, m_r = block_of_pixels(program, grid, PATCH_H, PATCH_W, BLOCK_M)
    o_h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    taps = patch_base(weights_ptr, n, py, px, weights_strides)
    b_z = _filtered(
        base(hidden_ptr, n, hidden_strides[0]), taps, py, px, y, x, o_h, m_r, size, hidden_strides,
        scale_ptr, shift_ptr, HIDDEN, CHANNELS, PATCH_H, PATCH_W, OWN, True, WIDE, BLOCK_M, BLOCK_H,
    )  # fmt: skip
    if MOMENTS:
        store_moments(partial_ptr, program, b_z, m_r, o_h, HIDDEN)
    pixel = pixel_offset(py * PATCH_H + y, px * PATCH_W + x, out_strides, WIDE)
    store_map(base(out_ptr, n, out_strides[0]), b_z, pixel, o_h, m_r, CHANNELS, out_strides, WIDE)


def depthwise_project(
    hidden_map: Tensor, weights: Tensor, first: int, bias: Tensor | None, hidden: int, out: Tensor, halo: str
) -> None:
    """Fill ``out`` [N, O, H, W] with W3 relu6(depthwise(hidden, w2) + b2) + b3.

    Args:
        hidden_map: after ReLU6, at least ``hidden`` channels; with halo ``"own"`` a window map.
        weights: [N, fh, fw, P] with contiguous parameters; the depthwise taps start at ``first``.
        bias: [hidden + O] or None.
    """
    n, fh, fw, _ = weights.shape
    _, out_channels, height, width = out.shape
    patch_h, patch_w = height // fh, width // fw
    block_x = block(patch_w, 8, 16)
    block_y = block(patch_h, 16 // block_x, 64 // block_x)  # of at least 16 pixels for tl.dot
    default = {"BLOCK_Y": block_y, "BLOCK_X": block_x, "BLOCK_H": 16, "num_warps": 2, "num_stages": 1}
    signature = {"hidden": hidden, "outputs": out_channels, "pixels": patch_h * patch_w}
    chosen = launch.options("depthwise_project", out, default, **signature)
    blocks = cdiv(patch_h, chosen["BLOCK_Y"]) * cdiv(patch_w, chosen["BLOCK_X"])
    with torch.cuda.device_of(out):
        _depthwise_project_kernel[(n * fh * fw * blocks,)](
            hidden_map, weights[..., first:], weights if bias is None else bias, out,
            (height, width), (fh, fw), hidden_map.stride(), weights.stride(), out.stride(),
            HIDDEN=hidden,
            CHANNELS=hidden_map.shape[1],
            OUT=out_channels,
            PATCH_H=patch_h,
            PATCH_W=patch_w,
            OWN=halo == "own",
            BIAS=bias is not None,
            PRECISION=precision(out.dtype),
            WIDE=wide(hidden_map, out),
            BLOCK_O=block(out_channels),
            enable_fp_fusion=True,
            **chosen,
        )  # fmt: skip


def depthwise(
    hidden_map: Tensor,
    weights: Tensor,
    first: int,
    norm: tuple[Tensor, Tensor],
    hidden: int,
    out: Tensor,
    halo: str,
    *,
    partials: bool = False,
) -> Tensor | None:
    """Fill ``out`` [N, channels, H, W] with depthwise(relu6(scale * hidden + shift), w2).

    Returns:
        With ``partials`` rows of moments; see ``store_moments``.
    """
    n, fh, fw, _ = weights.shape
    height, width = out.shape[2:]
    patch_h, patch_w = height // fh, width // fw
    chosen = depthwise_options("depthwise_fwd", out, hidden, patch_h * patch_w)
    rows = n * fh * fw * cdiv(patch_h * patch_w, chosen["BLOCK_M"])
    found = out.new_empty((rows, 3, hidden), dtype=torch.float32) if partials else None
    with torch.cuda.device_of(out):
        _depthwise_fwd_kernel[(rows, cdiv(out.shape[1], chosen["BLOCK_H"]))](
            hidden_map, weights[..., first:], *norm, out, out if found is None else found,
            (height, width), (fh, fw), hidden_map.stride(), weights.stride(), out.stride(),
            HIDDEN=hidden,
            CHANNELS=out.shape[1],
            PATCH_H=patch_h,
            PATCH_W=patch_w,
            OWN=halo == "own",
            MOMENTS=partials,
            WIDE=wide(hidden_map, out),
            enable_fp_fusion=True,
            **chosen,
        )  # fmt: skip
    return found


def depthwise_options(kernel: str, x: Tensor, hidden: int, pixels: int) -> launch.Options:
    default = {"BLOCK_M": block(pixels, 16, 64), "BLOCK_H": 16, "num_warps": 4, "num_stages": 1}
    return launch.options(kernel, x, default, hidden=hidden, pixels=pixels)
