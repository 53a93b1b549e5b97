"""The convolution weights of every patch, in Triton: all generators in one launch.

A generator's groups are cut into tiles, and the tiles of all generators numbered through. What the kernels must know of
each generator they get as tuples: a table on the device would have to be copied there, which a CUDA graph cannot do.
"""

from itertools import accumulate

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyperseg.kernels import launch
from hyperseg.kernels.launch import DTYPES, block, precision

BLOCK_C = 8  # channels that a program of the last kernel sums


@triton.jit
def _of(values, firsts, tile):
    """The one of ``values`` that belongs to the generator of this tile; ``firsts`` are the generators' first tiles."""
    value = values[0]
    for i in tl.static_range(1, len(firsts)):
        value = tl.where(tile >= firsts[i], values[i], value)
    return value


@triton.jit
def _patch_offsets(o_p, fh, fw, stride_n, stride_h, stride_w):
    """Where the patches lie that have the numbers ``o_p``, counted through all images."""
    n, y, x = o_p // (fh * fw), o_p // fw % fh, o_p % fw
    return n.to(tl.int64) * stride_n + y.to(tl.int64) * stride_h + x.to(tl.int64) * stride_w


@triton.jit
def _generate_weights_fwd_kernel(
    signal_ptr,  # [N, C, fh, fw], any strides
    generator_ptrs,  # of each generator: [groups * rows, width], any strides
    out_ptr,  # [N, fh, fw, total], contiguous
    firsts,  # of each generator: its first tile
    rows,  # of one of its groups
    widths,  # signal channels that a group reads
    sizes,  # how many of its rows exist in the output
    offsets,  # the first signal channel it reads
    starts,  # the first parameter it makes
    strides_r,
    strides_k,
    patches,  # N * fh * fw
    fh,
    fw,
    total,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """out[p, start + r] = sum over k of signal[p, offset + group(r) * width + k] * generator[r, k]."""
    blocks = tl.cdiv(patches, BLOCK_P)
    tile = tl.program_id(0) // blocks
    o_p = tl.program_id(0) % blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    m_p = o_p < patches

    height, width = _of(rows, firsts, tile), _of(widths, firsts, tile)
    part = tile - _of(firsts, firsts, tile)
    group = part // tl.cdiv(height, BLOCK_R)
    o_r = part % tl.cdiv(height, BLOCK_R) * BLOCK_R + tl.arange(0, BLOCK_R)
    m_r = (o_r < height) & (group * height + o_r < _of(sizes, firsts, tile))
    row = (group * height + o_r).to(tl.int64)

    channel = _of(offsets, firsts, tile) + group * width
    signal = signal_ptr + _patch_offsets(o_p, fh, fw, stride_n, stride_h, stride_w)
    generator = _of(generator_ptrs, firsts, tile) + row * _of(strides_r, firsts, tile)
    stride_k = _of(strides_k, firsts, tile)
    acc = tl.zeros((BLOCK_P, BLOCK_R), tl.float32)
    for k in range(0, width, BLOCK_K):
        o_k = k + tl.arange(0, BLOCK_K)
        m_k = o_k < width
        o_c = (channel + o_k).to(tl.int64) * stride_c
        b_signal = tl.load(signal[:, None] + o_c[None, :], mask=m_p[:, None] & m_k[None, :], other=0.0)
        o_k = o_k.to(tl.int64) * stride_k
        b_generator = tl.load(generator[None, :] + o_k[:, None], mask=m_r[None, :] & m_k[:, None], other=0.0)
        acc = tl.dot(b_signal, b_generator, acc, input_precision=PRECISION)

    out = out_ptr + o_p.to(tl.int64)[:, None] * total + (_of(starts, firsts, tile) + row)[None, :]
    tl.store(out, acc.to(out_ptr.dtype.element_ty), mask=m_p[:, None] & m_r[None, :])


@triton.jit
def _generate_weights_bwd_generators_kernel(
    grad_ptr,  # [N, fh, fw, total], any strides
    signal_ptr,  # [N, C, fh, fw], any strides
    d_generator_ptrs,  # of each generator: [groups * rows, width], contiguous
    firsts,  # of each generator: its first tile; the rest as above
    rows,
    widths,
    sizes,
    offsets,
    starts,
    patches,
    fh,
    fw,
    grad_stride_n,
    grad_stride_h,
    grad_stride_w,
    grad_stride_p,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """d_generator[r, k] = sum over p of grad[p, start + r] * signal[p, offset + group(r) * width + k]; p in order."""
    tile = tl.program_id(0)
    height, width = _of(rows, firsts, tile), _of(widths, firsts, tile)
    part = tile - _of(firsts, firsts, tile)
    across = tl.cdiv(width, BLOCK_K)
    down = tl.cdiv(height, BLOCK_R)
    group = part // (across * down)
    o_k = part % across * BLOCK_K + tl.arange(0, BLOCK_K)
    o_r = part // across % down * BLOCK_R + tl.arange(0, BLOCK_R)
    m_k, m_r = o_k < width, o_r < height
    row = (group * height + o_r).to(tl.int64)
    used = m_r & (row < _of(sizes, firsts, tile))  # the other rows' gradients are 0

    grad = grad_ptr + (_of(starts, firsts, tile) + row) * grad_stride_p
    signal = signal_ptr + (_of(offsets, firsts, tile) + group * width + o_k).to(tl.int64) * stride_c
    acc = tl.zeros((BLOCK_R, BLOCK_K), tl.float32)
    for p in range(0, patches, BLOCK_P):
        o_p = p + tl.arange(0, BLOCK_P)
        m_p = o_p < patches
        o_grad = _patch_offsets(o_p, fh, fw, grad_stride_n, grad_stride_h, grad_stride_w)
        o_signal = _patch_offsets(o_p, fh, fw, stride_n, stride_h, stride_w)
        b_grad = tl.load(grad[:, None] + o_grad[None, :], mask=used[:, None] & m_p[None, :], other=0.0)
        b_signal = tl.load(signal[None, :] + o_signal[:, None], mask=m_k[None, :] & m_p[:, None], other=0.0)
        acc = tl.dot(b_grad, b_signal, acc, input_precision=PRECISION)

    out = _of(d_generator_ptrs, firsts, tile) + row[:, None] * width + o_k[None, :]
    tl.store(out, acc.to(grad_ptr.dtype.element_ty), mask=m_r[:, None] & m_k[None, :])


@triton.jit
def _generate_weights_bwd_parts_kernel(
    grad_ptr,  # [N, fh, fw, total], any strides
    generator_ptrs,  # of each generator: [groups * rows, width], any strides
    parts_ptr,  # [signal channels read by the first generator, by the second ..., N * fh * fw], float32
    firsts,  # of each generator: its first tile of channels; the rest as above
    rows,
    widths,
    sizes,
    begins,  # where it begins in ``parts``
    starts,
    strides_r,
    strides_k,
    patches,
    fh,
    fw,
    grad_stride_n,
    grad_stride_h,
    grad_stride_w,
    grad_stride_p,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """parts[begin + group * width + k, p] = sum over r in the group of grad[p, start + r] * generator[r, k]."""
    blocks = tl.cdiv(patches, BLOCK_P)
    tile = tl.program_id(0) // blocks
    o_p = tl.program_id(0) % blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    m_p = o_p < patches

    height, width = _of(rows, firsts, tile), _of(widths, firsts, tile)
    part = tile - _of(firsts, firsts, tile)
    group = part // tl.cdiv(width, BLOCK_K)
    o_k = part % tl.cdiv(width, BLOCK_K) * BLOCK_K + tl.arange(0, BLOCK_K)
    m_k = o_k < width

    grad = grad_ptr + _patch_offsets(o_p, fh, fw, grad_stride_n, grad_stride_h, grad_stride_w)
    generator = _of(generator_ptrs, firsts, tile) + o_k.to(tl.int64) * _of(strides_k, firsts, tile)
    start, stride_r = _of(starts, firsts, tile), _of(strides_r, firsts, tile)
    end = tl.minimum(group * height + height, _of(sizes, firsts, tile))
    acc = tl.zeros((BLOCK_P, BLOCK_K), tl.float32)
    for r in range(group * height, end, BLOCK_R):
        o_r = r + tl.arange(0, BLOCK_R)
        m_r = o_r < end
        o_r = o_r.to(tl.int64)
        o_grad = (start + o_r) * grad_stride_p
        b_grad = tl.load(grad[:, None] + o_grad[None, :], mask=m_p[:, None] & m_r[None, :], other=0.0)
        o_row = o_r * stride_r
        b_generator = tl.load(generator[None, :] + o_row[:, None], mask=m_k[None, :] & m_r[:, None], other=0.0)
        acc = tl.dot(b_grad, b_generator, acc, input_precision=PRECISION)

    o_part = (_of(begins, firsts, tile) + group * width + o_k).to(tl.int64) * patches
    tl.store(parts_ptr + o_part[None, :] + o_p[:, None], acc, mask=m_p[:, None] & m_k[None, :])


@triton.jit
def _generate_weights_bwd_signal_kernel(
    parts_ptr,  # as above
    d_signal_ptr,  # [N, C, area], contiguous
    offsets,  # of each generator: the first signal channel it reads
    begins,  # where it begins in ``parts``
    ends,
    patches,
    area,  # fh * fw
    C,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """d_signal[p, c] = sum over the generators that read channel c of parts[begin + c - offset, p]; else 0."""
    blocks = tl.cdiv(patches, BLOCK_P)
    o_p = tl.program_id(0) % blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    o_c = tl.program_id(0) // blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    m_p, m_c = o_p < patches, o_c < C
    acc = tl.zeros((BLOCK_C, BLOCK_P), tl.float32)
    for i in tl.static_range(len(offsets)):
        o_part = begins[i] + o_c - offsets[i]
        m_part = m_c & (o_part >= begins[i]) & (o_part < ends[i])
        part = parts_ptr + o_part.to(tl.int64)[:, None] * patches + o_p[None, :]
        acc += tl.load(part, mask=m_part[:, None] & m_p[None, :], other=0.0)
    n, pixel = (o_p // area).to(tl.int64), o_p % area
    out = d_signal_ptr + (n[None, :] * C + o_c[:, None]) * area + pixel[None, :]
    tl.store(out, acc.to(d_signal_ptr.dtype.element_ty), mask=m_c[:, None] & m_p[None, :])


def _first(counts: list[int]) -> tuple[int, ...]:
    """Where each begins if so many lie one after the other."""
    return tuple(accumulate(counts, initial=0))[:-1]


def _check(signal: Tensor, generators: list[Tensor]) -> None:
    if signal.dim() != 4 or not generators:
        raise ValueError(
            f"generate_weights: takes a signal [N, C, fh, fw] and at least one generator, "
            f"got {list(signal.shape)} and {len(generators)}"
        )
    if signal.dtype not in DTYPES:
        raise TypeError(f"generate_weights: signal must be float32, float16 or bfloat16 for Triton, got {signal.dtype}")


def _options(kernel: str, signal: Tensor, rows: list[int], widths: list[int], patches: int) -> launch.Options:
    # In float32 more of them use the stack, on sm_80 and, where the grid's width is no power of two, with Triton 3.6.
    most = 32 if signal.dtype == torch.float32 else 64
    most_rows = most if kernel == "generate_weights_bwd_generators" else 64
    default = {
        "BLOCK_P": block(patches, most=most),
        "BLOCK_R": block(max(rows), most=most_rows),
        "BLOCK_K": block(max(widths), most=32),
        "num_warps": 4,
        "num_stages": 3,
    }
    return launch.options(kernel, signal, default, rows=max(rows), width=max(widths), generators=len(rows))


def generate_weights(
    signal: Tensor, generators: list[Tensor], offsets: list[int], groups: list[int], sizes: list[int]
) -> Tensor:
    """Grouped 1x1 convolutions of channel ranges of the signal, one after the other: [N, fh, fw, sum(sizes)].

    Args:
        signal: [N, C, fh, fw] in float32, float16 or bfloat16, with any strides.
        generators: each [rows, channels / groups], with any strides; the first ``sizes`` of their rows are used.
    """
    _check(signal, generators)
    n, _, fh, fw = signal.shape
    out = signal.new_empty((n, fh, fw, sum(sizes)))
    patches = n * fh * fw
    if patches == 0:
        return out
    rows = [g.shape[0] // group for g, group in zip(generators, groups, strict=True)]
    widths = [g.shape[1] for g in generators]
    options = _options("generate_weights_fwd", signal, rows, widths, patches)
    tiles = [group * triton.cdiv(r, options["BLOCK_R"]) for group, r in zip(groups, rows, strict=True)]
    with torch.cuda.device_of(signal):
        _generate_weights_fwd_kernel[(sum(tiles) * triton.cdiv(patches, options["BLOCK_P"]),)](
            signal,
            tuple(generators),
            out,
            _first(tiles),
            tuple(rows),
            tuple(widths),
            tuple(sizes),
            tuple(offsets),
            _first(sizes),
            tuple(g.stride(0) for g in generators),
            tuple(g.stride(1) for g in generators),
            patches,
            fh,
            fw,
            sum(sizes),
            *signal.stride(),
            PRECISION=precision(signal.dtype),
            enable_fp_fusion=True,
            **options,
        )
    return out


def generate_weights_backward(
    grad: Tensor,
    signal: Tensor,
    generators: list[Tensor],
    offsets: list[int],
    groups: list[int],
    sizes: list[int],
) -> tuple[Tensor, list[Tensor]]:
    """The gradients of the signal and of the generators, contiguous; sums are taken in a fixed order.

    Args:
        grad: [N, fh, fw, sum(sizes)], with any strides; the rest as in :func:`generate_weights`.
    """
    _check(signal, generators)
    d_signal = signal.new_empty(signal.shape)
    d_generators = [g.new_empty(g.shape) for g in generators]
    if signal.numel() == 0:
        return d_signal, [d.zero_() for d in d_generators]
    _differentiate_generators(grad, signal, d_generators, offsets, groups, sizes)
    _differentiate_signal(grad, d_signal, generators, offsets, groups, sizes)
    return d_signal, d_generators


def _differentiate_generators(
    grad: Tensor, signal: Tensor, d_generators: list[Tensor], offsets: list[int], groups: list[int], sizes: list[int]
) -> None:
    n, _, fh, fw = signal.shape
    rows = [d.shape[0] // group for d, group in zip(d_generators, groups, strict=True)]
    widths = [d.shape[1] for d in d_generators]
    options = _options("generate_weights_bwd_generators", signal, rows, widths, n * fh * fw)
    tiles = [
        group * triton.cdiv(r, options["BLOCK_R"]) * triton.cdiv(width, options["BLOCK_K"])
        for group, r, width in zip(groups, rows, widths, strict=True)
    ]
    with torch.cuda.device_of(signal):
        _generate_weights_bwd_generators_kernel[(sum(tiles),)](
            grad,
            signal,
            tuple(d_generators),
            _first(tiles),
            tuple(rows),
            tuple(widths),
            tuple(sizes),
            tuple(offsets),
            _first(sizes),
            n * fh * fw,
            fh,
            fw,
            *grad.stride(),
            *signal.stride(),
            PRECISION=precision(signal.dtype),
            enable_fp_fusion=True,
            **options,
        )


def _differentiate_signal(
    grad: Tensor, d_signal: Tensor, generators: list[Tensor], offsets: list[int], groups: list[int], sizes: list[int]
) -> None:
    """What each generator passes back, then the sum over those that read a channel."""
    n, channels, fh, fw = d_signal.shape
    patches = n * fh * fw
    rows = [g.shape[0] // group for g, group in zip(generators, groups, strict=True)]
    widths = [g.shape[1] for g in generators]
    read = [width * group for width, group in zip(widths, groups, strict=True)]
    begins = _first(read)
    parts = d_signal.new_empty((sum(read), patches), dtype=torch.float32)
    options = _options("generate_weights_bwd_parts", d_signal, rows, widths, patches)
    tiles = [group * triton.cdiv(width, options["BLOCK_K"]) for group, width in zip(groups, widths, strict=True)]
    with torch.cuda.device_of(d_signal):
        _generate_weights_bwd_parts_kernel[(sum(tiles) * triton.cdiv(patches, options["BLOCK_P"]),)](
            grad,
            tuple(generators),
            parts,
            _first(tiles),
            tuple(rows),
            tuple(widths),
            tuple(sizes),
            begins,
            _first(sizes),
            tuple(g.stride(0) for g in generators),
            tuple(g.stride(1) for g in generators),
            patches,
            fh,
            fw,
            *grad.stride(),
            PRECISION=precision(d_signal.dtype),
            enable_fp_fusion=True,
            **options,
        )
        across = block(patches, most=128)
        _generate_weights_bwd_signal_kernel[(triton.cdiv(patches, across) * triton.cdiv(channels, BLOCK_C),)](
            parts,
            d_signal,
            tuple(offsets),
            begins,
            tuple(begin + width for begin, width in zip(begins, read, strict=True)),
            patches,
            fh * fw,
            channels,
            BLOCK_P=across,
            BLOCK_C=BLOCK_C,
            num_warps=4,
            enable_fp_fusion=True,
        )
