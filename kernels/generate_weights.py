"""``generate_weights`` in Triton: the convolution weights of every patch, all generators in one launch.

Each generator's groups are cut into tiles, and the tiles of all generators are numbered through. Kernels get what
differs between generators as tuples: a table in device memory would need a copy, which a CUDA graph cannot capture.
"""

from itertools import accumulate
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyperseg.kernels import launch
from hyperseg.kernels.launch import DTYPES, block, cdiv, precision

BLOCK_C = 8  # channels that a program of the last kernel sums


class Generators(NamedTuple):
    """Sizes of the generators, one entry per generator; see ``_of``."""

    tiles: tuple[int, ...]  # the first tile
    rows: tuple[int, ...]  # per group
    widths: tuple[int, ...]  # signal channels per group
    sizes: tuple[int, ...]  # rows that exist in the output
    offsets: tuple[int, ...]  # the first signal channel
    starts: tuple[int, ...]  # the first parameter


@triton.jit
def _of(values, tiles, tile):
    """Return the value of the generator that a tile belongs to; ``tiles`` are the generators' first tiles."""
    value = values[0]
    for i in tl.static_range(1, len(tiles)):
        value = tl.where(tile >= tiles[i], values[i], value)
    return value


@triton.jit
def _block_of_patches(patches, BLOCK_P: tl.constexpr):
    """Return the tile and the patches of a program: (tile, patches, mask)."""
    blocks = tl.cdiv(patches, BLOCK_P)
    tile = tl.program_id(0) // blocks
    o_p = tl.program_id(0) % blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    return tile, o_p, o_p < patches


@triton.jit
def _patch_offsets(o_p, grid, stride_n, stride_h, stride_w):
    """Return the offsets of patches ``o_p``, counted through all images."""
    n, y, x = o_p // (grid[0] * grid[1]), o_p // grid[1] % grid[0], o_p % grid[1]
    return n.to(tl.int64) * stride_n + y.to(tl.int64) * stride_h + x.to(tl.int64) * stride_w


@triton.jit
def _generate_weights_fwd_kernel(
    signal_ptr,  # [N, C, fh, fw], any strides
    generator_ptrs,  # of each generator: [groups * rows, width], any strides
    out_ptr,  # [N, fh, fw, total], contiguous
    generators,
    strides_r,  # of each generator
    strides_k,
    patches,  # N * fh * fw
    grid,  # (fh, fw)
    total,
    signal_strides,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """out[p, start + r] = sum over k of signal[p, offset + group(r) * width + k] * generator[r, k]."""
    tile, o_p, m_p = _block_of_patches(patches, BLOCK_P)
    tiles = generators.tiles
    height, width = _of(generators.rows, tiles, tile), _of(generators.widths, tiles, tile)
    part = tile - _of(tiles, tiles, tile)
    group = part // tl.cdiv(height, BLOCK_R)
    o_r = part % tl.cdiv(height, BLOCK_R) * BLOCK_R + tl.arange(0, BLOCK_R)
    m_r = (o_r < height) & (group * height + o_r < _of(generators.sizes, tiles, tile))
    row = (group * height + o_r).to(tl.int64)

    channel = _of(generators.offsets, tiles, tile) + group * width
    signal = signal_ptr + _patch_offsets(o_p, grid, signal_strides[0], signal_strides[2], signal_strides[3])
    generator = _of(generator_ptrs, tiles, tile) + row * _of(strides_r, tiles, tile)
    stride_k = _of(strides_k, tiles, tile)
    acc = tl.zeros((BLOCK_P, BLOCK_R), tl.float32)
    for k in range(0, width, BLOCK_K):
        o_k = k + tl.arange(0, BLOCK_K)
        m_k = o_k < width
        o_c = (channel + o_k).to(tl.int64) * signal_strides[1]
        b_signal = tl.load(signal[:, None] + o_c[None, :], mask=m_p[:, None] & m_k[None, :], other=0.0)
        o_k = o_k.to(tl.int64) * stride_k
        b_generator = tl.load(generator[None, :] + o_k[:, None], mask=m_r[None, :] & m_k[:, None], other=0.0)
        acc = tl.dot(b_signal, b_generator, acc, input_precision=PRECISION)

    out = out_ptr + o_p.to(tl.int64)[:, None] * total + (_of(generators.starts, tiles, tile) + row)[None, :]
    tl.store(out, acc.to(out_ptr.dtype.element_ty), mask=m_p[:, None] & m_r[None, :])


@triton.jit
def _generate_weights_bwd_generators_kernel(
    grad_ptr,  # [N, fh, fw, total], any strides
    signal_ptr,  # [N, C, fh, fw], any strides
    d_generator_ptrs,  # of each generator: [groups * rows, width], contiguous
    generators,
    patches,
    grid,
    grad_strides,
    signal_strides,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """d_generator[r, k] = sum over p of grad[p, start + r] * signal[p, offset + group(r) * width + k]; p in order."""
    tile = tl.program_id(0)
    tiles = generators.tiles
    height, width = _of(generators.rows, tiles, tile), _of(generators.widths, tiles, tile)
    part = tile - _of(tiles, tiles, tile)
    across = tl.cdiv(width, BLOCK_K)
    down = tl.cdiv(height, BLOCK_R)
    group = part // (across * down)
    o_k = part % across * BLOCK_K + tl.arange(0, BLOCK_K)
    o_r = part // across % down * BLOCK_R + tl.arange(0, BLOCK_R)
    m_k, m_r = o_k < width, o_r < height
    row = (group * height + o_r).to(tl.int64)
    used = m_r & (row < _of(generators.sizes, tiles, tile))  # the gradients of other rows are 0

    grad = grad_ptr + (_of(generators.starts, tiles, tile) + row) * grad_strides[3]
    channel = (_of(generators.offsets, tiles, tile) + group * width + o_k).to(tl.int64)
    signal = signal_ptr + channel * signal_strides[1]
    acc = tl.zeros((BLOCK_R, BLOCK_K), tl.float32)
    for p in range(0, patches, BLOCK_P):
        o_p = p + tl.arange(0, BLOCK_P)
        m_p = o_p < patches
        o_grad = _patch_offsets(o_p, grid, grad_strides[0], grad_strides[1], grad_strides[2])
        o_signal = _patch_offsets(o_p, grid, signal_strides[0], signal_strides[2], signal_strides[3])
        b_grad = tl.load(grad[:, None] + o_grad[None, :], mask=used[:, None] & m_p[None, :], other=0.0)
        b_signal = tl.load(signal[None, :] + o_signal[:, None], mask=m_k[None, :] & m_p[:, None], other=0.0)
        acc = tl.dot(b_grad, b_signal, acc, input_precision=PRECISION)

    out = _of(d_generator_ptrs, tiles, tile) + row[:, None] * width + o_k[None, :]
    tl.store(out, acc.to(grad_ptr.dtype.element_ty), mask=m_r[:, None] & m_k[None, :])


@triton.jit
def _generate_weights_bwd_parts_kernel(
    grad_ptr,  # [N, fh, fw, total], any strides
    generator_ptrs,  # of each generator: [groups * rows, width], any strides
    parts_ptr,  # [signal channels read by the first generator, by the second ..., N * fh * fw], float32
    generators,  # tiles are of channels
    begins,  # of each generator: its first row of ``parts``
    strides_r,
    strides_k,
    patches,
    grid,
    grad_strides,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """parts[begin + group * width + k, p] = sum over r in the group of grad[p, start + r] * generator[r, k]."""
    tile, o_p, m_p = _block_of_patches(patches, BLOCK_P)
    tiles = generators.tiles
    height, width = _of(generators.rows, tiles, tile), _of(generators.widths, tiles, tile)
    part = tile - _of(tiles, tiles, tile)
    group = part // tl.cdiv(width, BLOCK_K)
    o_k = part % tl.cdiv(width, BLOCK_K) * BLOCK_K + tl.arange(0, BLOCK_K)
    m_k = o_k < width

    grad = grad_ptr + _patch_offsets(o_p, grid, grad_strides[0], grad_strides[1], grad_strides[2])
    generator = _of(generator_ptrs, tiles, tile) + o_k.to(tl.int64) * _of(strides_k, tiles, tile)
    start, stride_r = _of(generators.starts, tiles, tile), _of(strides_r, tiles, tile)
    end = tl.minimum(group * height + height, _of(generators.sizes, tiles, tile))
    acc = tl.zeros((BLOCK_P, BLOCK_K), tl.float32)
    for r in range(group * height, end, BLOCK_R):
        o_r = r + tl.arange(0, BLOCK_R)
        m_r = o_r < end
        o_r = o_r.to(tl.int64)
        o_grad = (start + o_r) * grad_strides[3]
        b_grad = tl.load(grad[:, None] + o_grad[None, :], mask=m_p[:, None] & m_r[None, :], other=0.0)
        o_row = o_r * stride_r
        b_generator = tl.load(generator[None, :] + o_row[:, None], mask=m_k[None, :] & m_r[:, None], other=0.0)
        acc = tl.dot(b_grad, b_generator, acc, input_precision=PRECISION)

    o_part = (_of(begins, tiles, tile) + group * width + o_k).to(tl.int64) * patches
    tl.store(parts_ptr + o_part[None, :] + o_p[:, None], acc, mask=m_p[:, None] & m_k[None, :])


@triton.jit
def _generate_weights_bwd_signal_kernel(
    parts_ptr,  # as above
    d_signal_ptr,  # [N, C, area], contiguous
    offsets,  # of each generator: its first signal channel
    begins,  # its first row of ``parts``
    ends,
    patches,
    area,  # fh * fw
    C,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """d_signal[p, c] = sum over the generators that read channel c of parts[begin + c - offset, p]; else 0."""
    tile, o_p, m_p = _block_of_patches(patches, BLOCK_P)
    o_c = tile * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = o_c < C
    acc = tl.zeros((BLOCK_C, BLOCK_P), tl.float32)
    for i in tl.static_range(len(offsets)):
        o_part = begins[i] + o_c - offsets[i]
        m_part = m_c & (o_part >= begins[i]) & (o_part < ends[i])
        part = parts_ptr + o_part.to(tl.int64)[:, None] * patches + o_p[None, :]
        acc += tl.load(part, mask=m_part[:, None] & m_p[None, :], other=0.0)
    n, pixel = (o_p // area).to(tl.int64), o_p % area
    out = d_signal_ptr + (n[None, :] * C + o_c[:, None]) * area + pixel[None, :]
    tl.store(out, acc.to(d_signal_ptr.dtype.element_ty), mask=m_c[:, None] & m_p[None, :])


def _firsts(counts: list[int]) -> tuple[int, ...]:
    """Return the first number of each of so many, numbered through."""
    return tuple(accumulate(counts, initial=0))[:-1]


def _check(signal: Tensor, generators: list[Tensor]) -> None:
    if signal.dim() != 4 or not generators:
        raise ValueError(
            f"generate_weights: expected a signal [N, C, fh, fw] and at least one generator, "
            f"got {list(signal.shape)} and {len(generators)}"
        )
    if signal.dtype not in DTYPES:
        raise TypeError(f"generate_weights: signal must be float32, float16 or bfloat16 for Triton, got {signal.dtype}")


def _options(kernel: str, signal: Tensor, rows: list[int], widths: list[int], patches: int) -> launch.Options:
    # In float32 larger blocks use the stack, on sm_80 and, for grids whose width is no power of two, with Triton 3.6.
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


def _table(tiles: list[int], rows: list[int], widths: list[int], offsets: list[int], sizes: list[int]) -> Generators:
    return Generators(_firsts(tiles), tuple(rows), tuple(widths), tuple(sizes), tuple(offsets), _firsts(sizes))


def _strides(generators: list[Tensor]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the strides of rows and of columns."""
    return tuple(g.stride(0) for g in generators), tuple(g.stride(1) for g in generators)


def generate_weights(
    signal: Tensor, generators: list[Tensor], offsets: list[int], groups: list[int], sizes: list[int]
) -> Tensor:
    """Grouped 1x1 convolutions of channel ranges of the signal, concatenated: [N, fh, fw, sum(sizes)].

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
    chosen = _options("generate_weights_fwd", signal, rows, widths, patches)
    tiles = [group * cdiv(r, chosen["BLOCK_R"]) for group, r in zip(groups, rows, strict=True)]
    with torch.cuda.device_of(signal):
        _generate_weights_fwd_kernel[(sum(tiles) * cdiv(patches, chosen["BLOCK_P"]),)](
            signal, tuple(generators), out, _table(tiles, rows, widths, offsets, sizes), *_strides(generators),
            patches, (fh, fw), sum(sizes), signal.stride(),
            PRECISION=precision(signal.dtype),
            enable_fp_fusion=True,
            **chosen,
        )  # fmt: skip
    return out


def generate_weights_backward(
    grad: Tensor,
    signal: Tensor,
    generators: list[Tensor],
    offsets: list[int],
    groups: list[int],
    sizes: list[int],
) -> tuple[Tensor, list[Tensor]]:
    """Return the gradients of the signal and of the generators, contiguous; sums are taken in a fixed order.

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
    chosen = _options("generate_weights_bwd_generators", signal, rows, widths, n * fh * fw)
    tiles = [
        group * cdiv(r, chosen["BLOCK_R"]) * cdiv(width, chosen["BLOCK_K"])
        for group, r, width in zip(groups, rows, widths, strict=True)
    ]
    with torch.cuda.device_of(signal):
        _generate_weights_bwd_generators_kernel[(sum(tiles),)](
            grad, signal, tuple(d_generators), _table(tiles, rows, widths, offsets, sizes),
            n * fh * fw, (fh, fw), grad.stride(), signal.stride(),
            PRECISION=precision(signal.dtype),
            enable_fp_fusion=True,
            **chosen,
        )  # fmt: skip


def _differentiate_signal(
    grad: Tensor, d_signal: Tensor, generators: list[Tensor], offsets: list[int], groups: list[int], sizes: list[int]
) -> None:
    """Compute the gradient through each generator, then sum over the generators that read a channel."""
    n, channels, fh, fw = d_signal.shape
    patches = n * fh * fw
    rows = [g.shape[0] // group for g, group in zip(generators, groups, strict=True)]
    widths = [g.shape[1] for g in generators]
    read = [width * group for width, group in zip(widths, groups, strict=True)]
    begins = _firsts(read)
    ends = tuple(accumulate(read))
    parts = d_signal.new_empty((sum(read), patches), dtype=torch.float32)
    chosen = _options("generate_weights_bwd_parts", d_signal, rows, widths, patches)
    tiles = [group * cdiv(width, chosen["BLOCK_K"]) for group, width in zip(groups, widths, strict=True)]
    with torch.cuda.device_of(d_signal):
        _generate_weights_bwd_parts_kernel[(sum(tiles) * cdiv(patches, chosen["BLOCK_P"]),)](
            grad, tuple(generators), parts, _table(tiles, rows, widths, offsets, sizes), begins, *_strides(generators),
            patches, (fh, fw), grad.stride(),
            PRECISION=precision(d_signal.dtype),
            enable_fp_fusion=True,
            **chosen,
        )  # fmt: skip
        across = block(patches, most=128)
        _generate_weights_bwd_signal_kernel[(cdiv(patches, across) * cdiv(channels, BLOCK_C),)](
            parts, d_signal, tuple(offsets), begins, ends, patches, fh * fw, channels,
            BLOCK_P=across,
            BLOCK_C=BLOCK_C,
            num_warps=4,
            enable_fp_fusion=True,
        )  # fmt: skip
