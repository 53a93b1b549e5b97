"""Per-patch GEMM: 1x1 convolutions with generated weights, and the gradients of x and of the weights."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyperseg.kernels import launch
from hyperseg.kernels.language import (
    NONE,
    activate,
    base,
    block_of_pixels,
    coordinate,
    load_map,
    load_resized,
    normalised,
    patch_base,
    pixel_offset,
    place,
    store_map,
    store_moments,
    store_sums,
    through_relu6,
    wide,
    windowed,
)
from hyperseg.kernels.launch import block, cdiv, precision

TENSOR_CORES = ("_patch_pointwise_kernel", "_patch_wgrad_kernel")
CANDIDATES = {
    "patch_pointwise": [
        {"BLOCK_M": m, "BLOCK_N": n, "BLOCKS_N": b, "num_warps": w}
        for m in (16, 64, 128)
        for n in (16, 32)
        for b in (1, 8)
        for w in (2, 4)
    ]
}


@triton.jit
def _inputs(image, pixel, o_k, m_r, scale_ptr, shift_ptr, SKIP: tl.constexpr, strides, NORMALISED: tl.constexpr,
            WIDE: tl.constexpr):  # fmt: skip
    """Load [pixels, inputs] of x."""
    b_x = load_map(image, pixel, o_k, m_r, SKIP, strides, WIDE)
    if NORMALISED:
        b_x = normalised(b_x, o_k, SKIP, scale_ptr, shift_ptr).to(b_x.dtype)
    return b_x


@triton.jit
def _previous(
    image, y, x, o_k, m_r, size, scale, strides,
    PREVIOUS: tl.constexpr, RESIZED: tl.constexpr, WIDE: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Load [pixels, inputs] of the previous map, resized."""
    if RESIZED:
        return load_resized(image, y, x, o_k, m_r, PREVIOUS, size[0], size[1], scale[0], scale[1], strides, WIDE).to(
            DTYPE
        )
    return load_map(image, pixel_offset(y, x, strides, WIDE), o_k, m_r, PREVIOUS, strides, WIDE)


@triton.jit
def _weights(weights, first, o_k, o_w, m_o, stride_k, COUNT: tl.constexpr, DTYPE: tl.constexpr):
    """Load [inputs, outputs] of a patch's weights."""
    m = (o_k < COUNT)[:, None] & m_o[None, :]
    return tl.load(weights + (((first + o_k) * stride_k)[:, None] + o_w), mask=m, other=0.0).to(DTYPE)


@triton.jit
def _patch_pointwise_kernel(
    x_ptr,  # [N, SKIP, height, width], any strides
    previous_ptr,  # [N, PREVIOUS, previous_h, previous_w], resized to height x width
    weights_ptr,  # per patch: weight (k, o) at k * stride_k + o * stride_o
    bias_ptr,  # [OUT]
    scale_ptr,  # with NORMALISED [SKIP], applied to x; with GATED [OUT], applied to z
    shift_ptr,
    z_ptr,  # with GATED, a map like out
    out_ptr,  # [N, STORED, ...]
    partial_ptr,  # with MOMENTS float32 [programs, 3, OUT], with SUMS [programs, 2, OUT]
    size,  # (height, width)
    previous_size,
    scale,  # (previous height / height, previous width / width)
    grid,
    x_strides,
    previous_strides,
    weights_strides,  # of patches
    stride_k,
    stride_o,
    z_strides,
    out_strides,
    SKIP: tl.constexpr,
    PREVIOUS: tl.constexpr,
    OUT: tl.constexpr,
    STORED: tl.constexpr,  # channels of out; those after OUT become 0
    COORDINATES: tl.constexpr,  # two channels before x: the pixel's coordinates
    RESIZED: tl.constexpr,  # previous and x differ in size
    PATCH_H: tl.constexpr,  # of out; with HALO 2 more than of x
    PATCH_W: tl.constexpr,
    HALO: tl.constexpr,
    NORMALISED: tl.constexpr,  # x becomes relu6(scale * x + shift)
    BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    GATED: tl.constexpr,  # out is 0 where relu6(scale * z + shift) is flat
    MOMENTS: tl.constexpr,
    SUMS: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,  # int64 addresses
    OUTPUTS: tl.constexpr,  # per program
    BLOCK_M: tl.constexpr,  # pixels
    BLOCK_N: tl.constexpr,  # output channels
    BLOCK_K: tl.constexpr,  # input channels
):  # fmt: skip
    """out[p, o] = sum over k of x[p, k] * weights[patch of p][k, o], with a prologue on x and an epilogue on out."""
    row = tl.program_id(0)
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    n, py, px, own_y, own_x, m_r = block_of_pixels(row, grid, PATCH_H, PATCH_W, BLOCK_M)
    y, x = windowed(own_y, py, size[0], PATCH_H, HALO), windowed(own_x, px, size[1], PATCH_W, HALO)
    x_image, previous_image = base(x_ptr, n, x_strides[0]), base(previous_ptr, n, previous_strides[0])
    out = base(out_ptr, n, out_strides[0])
    weights = patch_base(weights_ptr, n, py, px, weights_strides)
    pixel = pixel_offset(y, x, x_strides, WIDE)
    out_y, out_x = py * PATCH_H + own_y, px * PATCH_W + own_x
    o_k = tl.arange(0, BLOCK_K)
    first: tl.constexpr = 2 if COORDINATES else 0
    # Inputs that fit one block are loaded, resized and normalised once for all outputs.
    HELD: tl.constexpr = SKIP <= BLOCK_K and PREVIOUS <= BLOCK_K
    if HELD:
        held = _inputs(x_image, pixel, o_k, m_r, scale_ptr, shift_ptr, SKIP, x_strides, NORMALISED, WIDE)
        if PREVIOUS > 0:
            held_previous = _previous(
                previous_image, y, x, o_k, m_r, previous_size, scale, previous_strides, PREVIOUS, RESIZED, WIDE, DTYPE,
            )  # fmt: skip

    begin = tl.program_id(1) * OUTPUTS
    for o in range(begin, tl.minimum(begin + OUTPUTS, STORED), BLOCK_N):
        o_o = o + tl.arange(0, BLOCK_N)
        m_o = o_o < OUT
        o_w = (o_o * stride_o)[None, :]
        b_out = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        if BIAS:
            b_out = tl.load(bias_ptr + o_o, mask=m_o, other=0.0).to(tl.float32)[None, :] + b_out
        if COORDINATES:
            w_x = tl.load(weights + o_w, mask=m_o[None, :], other=0.0).to(tl.float32)
            w_y = tl.load(weights + stride_k + o_w, mask=m_o[None, :], other=0.0).to(tl.float32)
            b_out = coordinate(x, size[1])[:, None] * w_x + b_out
            b_out = coordinate(y, size[0])[:, None] * w_y + b_out
        if HELD:
            b_w = _weights(weights, first, o_k, o_w, m_o, stride_k, SKIP, DTYPE)
            b_out = tl.dot(held, b_w, b_out, input_precision=PRECISION)
            if PREVIOUS > 0:
                b_w = _weights(weights, first + SKIP, o_k, o_w, m_o, stride_k, PREVIOUS, DTYPE)
                b_out = tl.dot(held_previous, b_w, b_out, input_precision=PRECISION)
        else:
            for k in range(0, SKIP, BLOCK_K):
                b_x = _inputs(x_image, pixel, k + o_k, m_r, scale_ptr, shift_ptr, SKIP, x_strides, NORMALISED, WIDE)
                b_w = _weights(weights, first, k + o_k, o_w, m_o, stride_k, SKIP, DTYPE)
                b_out = tl.dot(b_x, b_w, b_out, input_precision=PRECISION)
            for k in range(0, PREVIOUS, BLOCK_K):
                b_x = _previous(
                    previous_image, y, x, k + o_k, m_r, previous_size, scale, previous_strides, PREVIOUS, RESIZED, WIDE,
                    DTYPE,
                )  # fmt: skip
                b_w = _weights(weights, first + SKIP, k + o_k, o_w, m_o, stride_k, PREVIOUS, DTYPE)
                b_out = tl.dot(b_x, b_w, b_out, input_precision=PRECISION)

        b_out = activate(b_out, ACTIVATION)
        if GATED:
            z, o_z = base(z_ptr, n, z_strides[0]), pixel_offset(out_y, out_x, z_strides, WIDE)
            b_z = load_map(z, o_z, o_o, m_r, STORED, z_strides, WIDE).to(tl.float32)
            b_out = through_relu6(b_out, b_z, o_o, OUT, scale_ptr, shift_ptr)
            if SUMS:
                store_sums(partial_ptr, row, b_out, b_z, m_r, o_o, OUT)
        if MOMENTS:
            store_moments(partial_ptr, row, b_out, m_r, o_o, OUT)
        if STORED > OUT:  # noqa: SIM102  (the first is known to the compiler)
            if o + BLOCK_N > OUT:  # an infinite input gives NaN there
                b_out = tl.where(m_o[None, :], b_out, 0.0)
        store_map(out, b_out, pixel_offset(out_y, out_x, out_strides, WIDE), o_o, m_r, STORED, out_strides, WIDE)


@triton.jit
def _patch_wgrad_kernel(
    d_ptr,  # [N, OUT, ...]
    x_ptr,  # [N, IN, height, width]
    scale_ptr,
    shift_ptr,
    out_ptr,  # [N, fh, fw, P], contiguous; weight (k, o) of a patch at k * stride_k + o * stride_o
    size,  # (height, width)
    grid,
    parameters,
    d_strides,
    x_strides,
    stride_k,
    stride_o,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    PATCH_H: tl.constexpr,  # of d
    PATCH_W: tl.constexpr,
    HALO: tl.constexpr,
    NORMALISED: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,  # int64 addresses
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """out[patch][k, o] = sum over the pixels p of the patch of x[p, k] * d[p, o], in order."""
    patch = tl.program_id(0)
    n, py, px = place(patch, grid)
    o_k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    o_o = tl.program_id(2) * BLOCK_N + tl.arange(0, BLOCK_N)
    b_out = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for first in range(0, PATCH_H * PATCH_W, BLOCK_M):
        o_r = first + tl.arange(0, BLOCK_M)
        m_r = o_r < PATCH_H * PATCH_W
        y, x = o_r // PATCH_W, o_r % PATCH_W
        x_y, x_x = windowed(y, py, size[0], PATCH_H, HALO), windowed(x, px, size[1], PATCH_W, HALO)
        pixel = pixel_offset(x_y, x_x, x_strides, WIDE)
        b_x = load_map(base(x_ptr, n, x_strides[0]), pixel, o_k, m_r, IN, x_strides, WIDE)
        if NORMALISED:
            b_x = normalised(b_x, o_k, IN, scale_ptr, shift_ptr).to(x_ptr.dtype.element_ty)
        pixel = pixel_offset(py * PATCH_H + y, px * PATCH_W + x, d_strides, WIDE)
        b_d = load_map(base(d_ptr, n, d_strides[0]), pixel, o_o, m_r, OUT, d_strides, WIDE)
        # Rows after the patch: d is 0 there; x, normalised, may not be.
        b_out = tl.dot(tl.trans(b_d), b_x.to(b_d.dtype), b_out, input_precision=PRECISION)
    at = base(out_ptr, patch, parameters) + ((o_o * stride_o)[:, None] + (o_k * stride_k)[None, :])
    tl.store(at, b_out.to(out_ptr.dtype.element_ty), mask=(o_o < OUT)[:, None] & (o_k < IN)[None, :])


@dataclass(frozen=True)
class Matrix:
    """Position of a matrix among a patch's parameters: weight (k, o) is at first + k * stride_k + o * stride_o."""

    first: int
    outputs: int
    inputs: int
    stride_k: int
    stride_o: int

    @property
    def transposed(self) -> "Matrix":
        return Matrix(self.first, self.inputs, self.outputs, self.stride_o, self.stride_k)


def matrix_at(first: int, outputs: int, inputs: int) -> Matrix:
    """Return the matrix [outputs, inputs], row-major, that starts at parameter ``first``."""
    return Matrix(first, outputs, inputs, 1, inputs)


def patch_pointwise(
    x: Tensor,
    weights: Tensor,
    matrix: Matrix,
    out: Tensor,
    *,
    previous: Tensor | None = None,
    coordinates: bool = False,
    halo: bool = False,
    norm: tuple[Tensor, Tensor] | None = None,
    bias: Tensor | None = None,
    activation: int = NONE,
    gate: tuple[Tensor, Tensor, Tensor] | None = None,
    partials: str = "",
) -> Tensor | None:
    """Fill ``out`` with the GEMM of (coordinates, x, previous) and each patch's matrix.

    Args:
        x: [N, C, H, W], of which the first channels are read; with ``norm`` (scale, shift) relu6(scale * x + shift)
            is read instead.
        weights: [N, fh, fw, P] with contiguous parameters.
        out: [N, at least outputs, H', W'], a map of the same grid; with ``halo`` a window map. Spare channels become 0.
        previous: [N, D, h, w], resized to x.
        gate: (z, scale, shift): out becomes 0 where relu6(scale * z + shift) is flat; z is a map like out.
        partials: ``"moments"`` of out, or ``"sums"`` of out and out * z; see ``hyperseg.kernels.language``.

    Returns:
        The partial sums, float32 [programs, 3 or 2, outputs], or None without ``partials``.
    """
    n, fh, fw, _ = weights.shape
    patch_h, patch_w = out.shape[2] // fh, out.shape[3] // fw
    chosen = dict(_options(x, previous, out.shape[1], patch_h * patch_w, halo=int(halo), gated=int(gate is not None)))
    blocks = cdiv(patch_h * patch_w, chosen["BLOCK_M"])
    rows = n * fh * fw * blocks
    found = None
    if partials:
        found = x.new_empty((rows, 3 if partials == "moments" else 2, matrix.outputs), dtype=torch.float32)
    scale, shift = norm or (gate[1:] if gate else (x, x))
    z = gate[0] if gate else x
    before, extra = (x, 0) if previous is None else (previous, previous.shape[1])
    (height, width), (h, w) = x.shape[2:], before.shape[2:]
    outputs = chosen.pop("BLOCKS_N") * chosen["BLOCK_N"]
    with torch.cuda.device_of(x):
        _patch_pointwise_kernel[(rows, cdiv(out.shape[1], outputs))](
            x, before, weights[..., matrix.first :], x if bias is None else bias, scale, shift, z, out,
            x if found is None else found,
            (height, width), (h, w), (h / height, w / width), (fh, fw),
            x.stride(), before.stride(), weights.stride()[:3], matrix.stride_k, matrix.stride_o,
            z.stride(), out.stride(),
            SKIP=matrix.inputs - 2 * coordinates - extra,
            PREVIOUS=extra,
            OUT=matrix.outputs,
            STORED=out.shape[1],
            COORDINATES=coordinates,
            RESIZED=before.shape[2:] != x.shape[2:],
            PATCH_H=patch_h,
            PATCH_W=patch_w,
            HALO=halo,
            NORMALISED=norm is not None,
            BIAS=bias is not None,
            ACTIVATION=activation,
            GATED=gate is not None,
            MOMENTS=partials == "moments",
            SUMS=partials == "sums",
            PRECISION=precision(x.dtype),
            WIDE=wide(x, before, out),
            OUTPUTS=outputs,
            enable_fp_fusion=True,
            **chosen,
        )  # fmt: skip
    return found


def patch_wgrad(
    d: Tensor,
    x: Tensor,
    matrix: Matrix,
    d_weights: Tensor,
    *,
    halo: bool = False,
    norm: tuple[Tensor, Tensor] | None = None,
) -> None:
    """Fill the gradient of each patch's matrix: the sum over the patch's pixels of d [outputs] times x [inputs].

    Args:
        d: [N, outputs, H', W'], a map, or with ``halo`` a window map.
        x: [N, inputs, H, W]; with ``norm`` (scale, shift) relu6(scale * x + shift) is read instead.
        d_weights: [N, fh, fw, P], contiguous.
    """
    n, fh, fw, parameters = d_weights.shape
    default = {
        "BLOCK_M": block(d.shape[2] // fh * (d.shape[3] // fw), 16, 64 if x.dtype.itemsize == 2 else 16),
        "BLOCK_N": block(matrix.outputs, 16, 32),
        "BLOCK_K": block(matrix.inputs, 16, 32),
        "num_warps": 4,
        "num_stages": 2,
    }
    chosen = launch.options("patch_wgrad", x, default, outputs=matrix.outputs, inputs=matrix.inputs)
    scale, shift = norm or (x, x)
    grid = (n * fh * fw, cdiv(matrix.inputs, chosen["BLOCK_K"]), cdiv(matrix.outputs, chosen["BLOCK_N"]))
    with torch.cuda.device_of(x):
        _patch_wgrad_kernel[grid](
            d, x, scale, shift, d_weights[..., matrix.first :],
            tuple(x.shape[2:]), (fh, fw), parameters,
            d.stride(), x.stride(), matrix.stride_k, matrix.stride_o,
            IN=matrix.inputs,
            OUT=matrix.outputs,
            PATCH_H=d.shape[2] // fh,
            PATCH_W=d.shape[3] // fw,
            HALO=halo,
            NORMALISED=norm is not None,
            PRECISION=precision(x.dtype),
            WIDE=wide(x, d),
            enable_fp_fusion=True,
            **chosen,
        )  # fmt: skip


def _options(x: Tensor, previous: Tensor | None, outputs: int, pixels: int, **kind: int) -> launch.Options:
    inputs = max(x.shape[1], 0 if previous is None else previous.shape[1])
    many = pixels >= 64
    default = {
        "BLOCK_M": block(pixels, 16, 128 if x.dtype.itemsize == 2 else 64),
        "BLOCK_N": block(outputs, 16, 16 if many else 32),
        "BLOCKS_N": 8 if many else 1,  # few pixels: more programs, each patch's weights are read once anyway
        "BLOCK_K": block(inputs, 16, 32 if x.dtype.itemsize == 2 else 16),
        "num_warps": 2 if pixels <= 16 and inputs <= 32 else 4,
        "num_stages": 2,
    }
    return launch.options("patch_pointwise", x, default, inputs=inputs, outputs=outputs, pixels=pixels, **kind)
