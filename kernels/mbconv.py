"""``mbconv`` in Triton, EfficientNet's block for inference: expand, depthwise, squeeze-excite, project; four launches.

Both hidden maps go through memory, channels-last, in the dtype of x: the squeeze needs every pixel of the second one
before the project can start, and recomputing the first one in each depthwise tile costs more than it saves.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyperseg.kernels import launch
from hyperseg.kernels.language import sigmoid, silu
from hyperseg.kernels.launch import DTYPES, block, cdiv, precision
from hyperseg.kernels.parts.maps import alignment, output_map
from hyperseg.kernels.parts.tiles import PROGRAMS, SMS, TILES, cheapest_tile

TENSOR_CORES = ("_mbconv_fwd_expand_kernel", "_mbconv_fwd_project_kernel")

CANDIDATES = {
    "_mbconv_fwd_expand_kernel": TILES,
    "_mbconv_fwd_depthwise_kernel": [
        {"BLOCK_X": columns, "BLOCK_C": channels, "num_warps": warps}
        for columns, channels, warps in (
            (8, 32, 2),
            (8, 32, 4),
            (16, 16, 2),
            (16, 32, 2),
            (8, 64, 4),
            (16, 64, 4),
            (32, 32, 4),
        )
    ],
    "_mbconv_fwd_project_kernel": TILES,
}


@triton.jit
def _pixel_offsets(o_p, width, strides, ALIGN: tl.constexpr, DENSE: tl.constexpr):
    """Return the offsets of pixels ``o_p``, counted along rows of ``width``, where ALIGN divides the strides.

    DENSE: the next row begins one pixel after the last one of a row.
    """
    if DENSE:
        return o_p.to(tl.int64) * (strides[3] // ALIGN * ALIGN)
    rows, columns = (o_p // width).to(tl.int64), (o_p % width).to(tl.int64)
    return rows * (strides[2] // ALIGN * ALIGN) + columns * (strides[3] // ALIGN * ALIGN)


@triton.jit
def _load(at, m_rows, m_columns, WHOLE_ROWS: tl.constexpr, WHOLE_COLUMNS: tl.constexpr):
    """Load a tile; masks are left out of dimensions that tiles divide."""
    if WHOLE_ROWS and WHOLE_COLUMNS:
        return tl.load(at)
    if WHOLE_ROWS:
        return tl.load(at, mask=m_columns[None, :], other=0.0)
    if WHOLE_COLUMNS:
        return tl.load(at, mask=m_rows[:, None], other=0.0)
    return tl.load(at, mask=m_rows[:, None] & m_columns[None, :], other=0.0)


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
    outputs,  # per program, a multiple of BLOCK_O
    x_strides,
    ALIGN: tl.constexpr,  # divides C and the strides of pixels: vectorized loads
    DENSE: tl.constexpr,
    HELD: tl.constexpr,  # C is at most BLOCK_K: x is loaded once
    WHOLE_P: tl.constexpr,  # BLOCK_P divides pixels
    WHOLE_O: tl.constexpr,
    WHOLE_K: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """y[p, h] = silu(b[h] + sum over c of x[p, c] * w[h, c])."""
    n = tl.program_id(2).to(tl.int64)
    o_p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    o_k = tl.arange(0, BLOCK_K)
    m_p = o_p < pixels
    C = C // ALIGN * ALIGN
    stride_c = x_strides[1]
    x_rows = x_ptr + n * x_strides[0] + _pixel_offsets(o_p, width, x_strides, ALIGN, DENSE)[:, None]
    x_rows += o_k.to(tl.int64)[None, :] * stride_c
    begin = tl.program_id(1) * outputs
    y_rows = y_ptr + (n * pixels + o_p[:, None]) * hidden
    if HELD:
        held = _load(x_rows, m_p, o_k < C, WHOLE_P, WHOLE_K)
    for o in range(begin, tl.minimum(begin + outputs, hidden), BLOCK_O):
        o_h = o + tl.arange(0, BLOCK_O)
        m_h = o_h < hidden
        w_columns = w_ptr + o_h.to(tl.int64)[None, :] * C + o_k[:, None]
        total = tl.zeros((BLOCK_P, BLOCK_O), tl.float32)
        if HELD:
            b_w = _load(w_columns, o_k < C, m_h, WHOLE_K, WHOLE_O)
            total = tl.dot(held, b_w, total, input_precision=PRECISION)
        else:
            for c in range(0, C, BLOCK_K):
                b_x = _load(x_rows + c * stride_c, m_p, c + o_k < C, WHOLE_P, WHOLE_K)
                b_w = _load(w_columns + c, c + o_k < C, m_h, WHOLE_K, WHOLE_O)
                total = tl.dot(b_x, b_w, total, input_precision=PRECISION)
        total += tl.load(b_ptr + o_h, mask=m_h, other=0.0).to(tl.float32)[None, :]
        y = y_rows + o_h[None, :]
        tl.store(y, silu(total).to(y_ptr.dtype.element_ty), mask=m_p[:, None] & m_h[None, :])


@triton.jit
def _row_values(x_row, i_y, H, columns, stride_h, stride_w, SIZE: tl.constexpr, ROWS: tl.constexpr):
    """Load ROWS rows from ``i_y`` on, which begins at ``x_row``, each at SIZE columns; 0 outside the map."""
    values = ()
    for row in tl.static_range(ROWS):
        inside = (i_y + row >= 0) & (i_y + row < H)
        for dx in tl.static_range(SIZE):
            values = values + (tl.load(x_row + dx * stride_w, mask=columns[dx] & inside, other=0.0),)
        x_row += stride_h
    return values


@triton.jit(do_not_specialize=["H", "W", "height", "width", "top", "left", "rows", "squeezed"])
def _mbconv_fwd_depthwise_kernel(
    x_ptr,  # [N, hidden, H, W], any strides
    w_ptr,  # [hidden, SIZE, SIZE]
    b_ptr,  # [hidden]
    reduce_ptr,  # [squeezed, hidden]
    y_ptr,  # [N, height * width, hidden]
    shares_ptr,  # [N, strips, blocks of channels, squeezed, rounded up to BLOCK_S], float32
    hidden,
    squeezed,
    H,
    W,
    height,
    width,
    top,
    left,
    rows,  # of a strip
    x_strides,
    ALIGN: tl.constexpr,
    SIZE: tl.constexpr,
    STRIDE: tl.constexpr,
    WHOLE: tl.constexpr,  # tiles divide columns and channels
    BLOCK_X: tl.constexpr,  # columns of a strip
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """y[p, h] = silu(b[h] + sum over taps of x[STRIDE * p + tap, h] * w[h, tap]); shares of sums * reduce.

    A program walks down a strip. Each value of x is loaded once per column of taps and added to the OPEN rows of
    outputs that it belongs to; the first of these is then complete.
    """
    OPEN: tl.constexpr = (SIZE + STRIDE - 1) // STRIDE
    n = tl.program_id(2).to(tl.int64)
    o_c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    hidden = hidden // ALIGN * ALIGN
    m_c = o_c < hidden
    strips = tl.cdiv(width, BLOCK_X)
    o_x = tl.program_id(0) % strips * BLOCK_X + tl.arange(0, BLOCK_X)
    first = tl.program_id(0) // strips * rows
    last = tl.minimum(first + rows, height)
    m = (o_x < width)[:, None] & m_c[None, :]
    stride_h, stride_w = x_strides[2] // ALIGN * ALIGN, x_strides[3] // ALIGN * ALIGN
    i_x = o_x * STRIDE - left
    taps, columns, rows_of_outputs = (), (), ()
    for tap in tl.static_range(SIZE * SIZE):
        b_w = tl.load(w_ptr + o_c * (SIZE * SIZE) + tap, mask=m_c, other=0.0)
        taps = taps + (b_w.to(tl.float32)[None, :],)
    for dx in tl.static_range(SIZE):
        columns = columns + (m & ((i_x + dx >= 0) & (i_x + dx < W))[:, None],)
    for _ in tl.static_range(OPEN):
        rows_of_outputs = rows_of_outputs + (tl.zeros((BLOCK_X, BLOCK_C), tl.float32),)
    b_b = tl.load(b_ptr + o_c, mask=m_c, other=0.0).to(tl.float32)[None, :]
    sums = tl.zeros((BLOCK_X, BLOCK_C), tl.float32)
    x_map = x_ptr + n * x_strides[0] + o_c.to(tl.int64)[None, :] * x_strides[1]
    x_map += (i_x.to(tl.int64) * stride_w)[:, None]
    y_map = y_ptr + ((n * height * width + o_x)[:, None] * hidden + o_c[None, :])
    i_y = first * STRIDE - top + tl.zeros((1, 1), tl.int32)
    x_row = x_map + i_y.to(tl.int64) * stride_h
    ahead = _row_values(x_row, i_y, H, columns, stride_h, stride_w, SIZE, STRIDE)
    y_row = y_map + tl.cast(first - OPEN + 1, tl.int64) * width * hidden
    for o_y in range(first - OPEN + 1, last):  # the row that becomes complete
        values = ahead
        i_y += STRIDE
        x_row += STRIDE * stride_h
        ahead = _row_values(x_row, i_y, H, columns, stride_h, stride_w, SIZE, STRIDE)
        for i in tl.static_range(STRIDE * SIZE):
            b_x = values[i].to(tl.float32)
            added = ()
            for j in tl.static_range(OPEN):
                if (OPEN - 1 - j) * STRIDE * SIZE + i < SIZE * SIZE:
                    added = added + (rows_of_outputs[j] + b_x * taps[(OPEN - 1 - j) * STRIDE * SIZE + i],)
                else:
                    added = added + (rows_of_outputs[j],)
            rows_of_outputs = added
        if o_y >= first:
            y = silu(rows_of_outputs[0] + b_b)
            tl.store(y_row, y.to(y_ptr.dtype.element_ty), mask=m)
            sums += y if WHOLE else tl.where(m, y, 0.0)
        y_row += width * hidden
        moved = ()
        for i in tl.static_range(1, OPEN):
            moved = moved + (rows_of_outputs[i],)
        rows_of_outputs = moved + (tl.zeros((BLOCK_X, BLOCK_C), tl.float32),)
    total = tl.sum(sums, 0)
    shares = (n * tl.num_programs(0) + tl.program_id(0)) * tl.num_programs(1) + tl.program_id(1)
    shares_ptr += shares * (tl.cdiv(squeezed, BLOCK_S) * BLOCK_S)
    for s in range(0, squeezed, BLOCK_S):
        o_s = s + tl.arange(0, BLOCK_S)
        m_r = (o_s < squeezed)[:, None] & m_c[None, :]
        b_r = tl.load(reduce_ptr + o_s[:, None] * hidden + o_c[None, :], mask=m_r, other=0.0)
        tl.store(shares_ptr + o_s, tl.sum(b_r.to(tl.float32) * total[None, :], 1))


@triton.jit(do_not_specialize=["shares", "squeezed", "pixels"])
def _mbconv_fwd_gate_kernel(
    shares_ptr,  # [N, shares, squeezed, rounded up to BLOCK_S], float32
    bias_ptr,  # [squeezed]
    expand_ptr,  # [hidden, squeezed]
    expand_bias_ptr,  # [hidden]
    gate_ptr,  # [N, hidden]
    shares,
    hidden,
    squeezed,
    pixels,
    BLOCK_G: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """gate = sigmoid(expand silu(sum of shares / pixels + bias) + expand_bias)."""
    n = tl.program_id(1).to(tl.int64)
    o_h = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    o_g = tl.arange(0, BLOCK_G)
    m_h = o_h < hidden
    gate = tl.load(expand_bias_ptr + o_h, mask=m_h, other=0.0).to(tl.float32)
    steps = tl.cdiv(squeezed, BLOCK_S)
    for step in range(steps):
        o_s = tl.arange(0, BLOCK_S)
        at = shares_ptr + (n * shares * steps + step) * BLOCK_S + (o_g * steps)[:, None] * BLOCK_S + o_s[None, :]
        sums = tl.zeros((BLOCK_G, BLOCK_S), tl.float32)
        for g in tl.range(0, shares, BLOCK_G, loop_unroll_factor=8):
            sums += tl.load(at, mask=(g + o_g < shares)[:, None], other=0.0)
            at += steps * (BLOCK_G * BLOCK_S)
        o_s += step * BLOCK_S
        m_s = o_s < squeezed
        z = silu(tl.sum(sums, 0) / pixels + tl.load(bias_ptr + o_s, mask=m_s, other=0.0).to(tl.float32))
        b_w = tl.load(expand_ptr + o_h[:, None] * squeezed + o_s[None, :], mask=m_h[:, None] & m_s[None, :], other=0.0)
        gate += tl.sum(b_w.to(tl.float32) * z[None, :], 1)
    tl.store(gate_ptr + n * hidden + o_h, sigmoid(gate).to(gate_ptr.dtype.element_ty), mask=m_h)


@triton.jit
def _mbconv_fwd_project_kernel(
    y_ptr,  # [N, height * width, hidden]
    gate_ptr,  # [N, hidden], of the same dtype
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
    DENSE: tl.constexpr,
    WHOLE_P: tl.constexpr,
    WHOLE_O: tl.constexpr,
    WHOLE_K: tl.constexpr,
    ONCE: tl.constexpr,  # hidden is at most BLOCK_K
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
    o_k = tl.arange(0, BLOCK_K)
    y_rows = y_ptr + (n * pixels + o_p[:, None]) * hidden + o_k[None, :]
    w_rows = w_ptr + o_o.to(tl.int64)[None, :] * hidden + o_k[:, None]
    gates = gate_ptr + n * hidden + o_k
    total = tl.zeros((BLOCK_P, BLOCK_O), tl.float32)
    for h in range(0, BLOCK_K if ONCE else hidden, BLOCK_K):
        m_h = h + o_k < hidden
        b_y = _load(y_rows + h, m_p, m_h, WHOLE_P, WHOLE_K)
        b_gate = tl.load(gates + h) if WHOLE_K else tl.load(gates + h, mask=m_h, other=0.0)
        b_w = _load(w_rows + h, m_h, m_o, WHOLE_K, WHOLE_O)
        total = tl.dot(b_y * b_gate[None, :], b_w, total, input_precision=PRECISION)
    total += tl.load(b_ptr + o_o, mask=m_o, other=0.0).to(tl.float32)[None, :]
    m = m_p[:, None] & m_o[None, :]
    o_o = o_o.to(tl.int64)
    if RESIDUAL:
        o_x = _pixel_offsets(o_p, width, x_strides, ALIGN, DENSE)
        x_rows = x_ptr + n * x_strides[0] + o_x[:, None]
        b_x = tl.load(x_rows + o_o[None, :] * x_strides[1], mask=m, other=0.0)
        total += b_x.to(tl.float32)
    o_out = _pixel_offsets(o_p, width, out_strides, ALIGN, DENSE)
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
        depthwise, depthwise_bias, reduce = depthwise.contiguous(), depthwise_bias.contiguous(), reduce.contiguous()
        y, shares = _depthwise(y, depthwise, depthwise_bias, reduce, stride, top, left, height, width)
        scale = _gate(shares, reduce_bias.contiguous(), gate.contiguous(), gate_bias.contiguous(), height * width)
        _project(y, scale, project.contiguous(), project_bias.contiguous(), x if residual else None, out)
    return out


def _expand(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the hidden map [N, hidden, H, W] in channels-last memory."""
    n, channels, h, w = x.shape
    hidden = weight.shape[0]
    y = x.new_empty((n, h, w, hidden))
    default = cheapest_tile(n, h * w, hidden, channels, x.element_size())
    chosen = launch.options("_mbconv_fwd_expand_kernel", x, default, channels=channels, hidden=hidden)
    block_p, block_o, block_k = chosen["BLOCK_P"], chosen["BLOCK_O"], chosen["BLOCK_K"]
    tiles, columns = cdiv(h * w, block_p), cdiv(hidden, block_o)
    # Where x is loaded once for all columns, as many columns as still leave four programs per SM.
    each = max(1, min(columns, n * tiles * columns // (4 * SMS))) if channels <= block_k else 1
    _mbconv_fwd_expand_kernel[(tiles, cdiv(columns, each), n)](
        x, weight, bias, y, channels, hidden, w, h * w, each * block_o, x.stride(),
        ALIGN=alignment(channels, x),
        DENSE=_dense(x),
        HELD=channels <= block_k,
        WHOLE_P=h * w % block_p == 0,
        WHOLE_O=hidden % block_o == 0,
        WHOLE_K=channels % block_k == 0,
        PRECISION=precision(x.dtype),
        enable_fp_fusion=True,
        **chosen,
    )  # fmt: skip
    return y.permute(0, 3, 1, 2)


def _depthwise(
    x: Tensor, weight: Tensor, bias: Tensor, reduce: Tensor, stride: int, top: int, left: int, height: int, width: int
) -> tuple[Tensor, Tensor]:
    """Return the second hidden map [N, height, width, hidden] and shares [N, shares, squeezed] of the squeeze."""
    n, hidden, h, w = x.shape
    size, squeezed = weight.shape[1], reduce.shape[0]
    default = _strip(hidden, size)
    chosen = launch.options("_mbconv_fwd_depthwise_kernel", x, default, hidden=hidden, size=size, stride=stride)
    columns, blocks = cdiv(width, chosen["BLOCK_X"]), cdiv(hidden, chosen["BLOCK_C"])
    rows = _rows(n * columns * blocks, height, size, stride, chosen["num_warps"])
    strips = columns * cdiv(height, rows)
    y = x.new_empty((n, height, width, hidden))
    block_s = block(squeezed, 4, 64)
    shares = x.new_empty((n, strips * blocks, cdiv(squeezed, block_s) * block_s), dtype=torch.float32)
    _mbconv_fwd_depthwise_kernel[(strips, blocks, n)](
        x, weight, bias, reduce, y, shares, hidden, squeezed, h, w, height, width, top, left, rows, x.stride(),
        ALIGN=alignment(hidden, x),
        SIZE=size,
        STRIDE=stride,
        WHOLE=width % chosen["BLOCK_X"] == 0 and hidden % chosen["BLOCK_C"] == 0,
        BLOCK_S=block_s,
        enable_fp_fusion=True,
        **chosen,
    )  # fmt: skip
    return y, shares


def _gate(shares: Tensor, bias: Tensor, weight: Tensor, weight_bias: Tensor, pixels: int) -> Tensor:
    """Return the factor of each channel, [N, hidden]."""
    n, count, _ = shares.shape
    hidden, squeezed = weight.shape
    default = {"BLOCK_H": 32 if PROGRAMS > 1 else block(hidden, 16, 2048), "num_warps": 4, "num_stages": 1}
    chosen = launch.options("_mbconv_fwd_gate_kernel", weight, default, hidden=hidden, squeezed=squeezed)
    gate = weight.new_empty((n, hidden))
    block_s = block(squeezed, 4, 64)
    _mbconv_fwd_gate_kernel[(cdiv(hidden, chosen["BLOCK_H"]), n)](
        shares, bias, weight, weight_bias, gate, count, hidden, squeezed, pixels,
        BLOCK_G=1024 // block_s,
        BLOCK_S=block_s,
        enable_fp_fusion=True,
        **chosen,
    )  # fmt: skip
    return gate


def _project(y: Tensor, gate: Tensor, weight: Tensor, bias: Tensor, x: Tensor | None, out: Tensor) -> None:
    """Fill ``out`` with the projection of the gated map, plus ``x`` if given."""
    n, channels, height, width = out.shape
    hidden = weight.shape[1]
    default = cheapest_tile(n, height * width, channels, hidden, y.element_size())
    chosen = launch.options("_mbconv_fwd_project_kernel", y, default, hidden=hidden, out=channels)
    block_p, block_o, block_k = chosen["BLOCK_P"], chosen["BLOCK_O"], chosen["BLOCK_K"]
    tiles = (cdiv(height * width, block_p), cdiv(channels, block_o), n)
    added = out if x is None else x
    _mbconv_fwd_project_kernel[tiles](
        y, gate, weight, bias, added, out, hidden, channels, width, height * width, added.stride(), out.stride(),
        RESIDUAL=x is not None,
        ALIGN=min(alignment(channels, added), alignment(channels, out)),
        DENSE=_dense(added) and _dense(out),
        WHOLE_P=height * width % block_p == 0,
        WHOLE_O=channels % block_o == 0,
        WHOLE_K=hidden % block_k == 0,
        ONCE=hidden <= block_k,
        PRECISION=precision(y.dtype),
        enable_fp_fusion=True,
        **chosen,
    )  # fmt: skip


def _strip(channels: int, size: int) -> launch.Options:
    """Return the tile of the depthwise convolution: as many channels per thread as there are registers for taps."""
    per_thread = 4 if size <= 3 else 2 if size <= 5 else 1
    block_x, block_c = 4 * per_thread if PROGRAMS > 1 else 128, 16 if channels % 32 and channels < 160 else 32
    return {"BLOCK_X": block_x, "BLOCK_C": block_c, "num_warps": min(8, block_x * block_c // (32 * per_thread))}


@functools.cache
def _rows(columns: int, height: int, size: int, stride: int, warps: int) -> int:
    """Return the rows per strip with which the busiest SM is ready first, those loaded by two strips included."""
    if PROGRAMS == 1:
        return height
    opened = cdiv(size, stride)

    def cost(rows: int) -> int:
        """In rows of a warp: the taps cost about 4 of them; fewer than 6 warps wait for memory as long as 6 compute."""
        return max(cdiv(columns * cdiv(height, rows), SMS) * warps, 6) * (rows + opened + 4)

    return min((2**i for i in range(1, 7)), key=cost)


def _dense(x: Tensor) -> bool:
    """Return whether the next row of pixels begins one pixel after the last one of a row."""
    return x.stride(2) == x.shape[3] * x.stride(3)
