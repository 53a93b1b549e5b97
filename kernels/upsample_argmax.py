"""``upsample_argmax`` in Triton: labels at full size from small logits; full-size logits are never stored."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyperseg.kernels.language import corners, index, load_logits, sample, wide
from hyperseg.kernels.launch import DTYPES, cdiv

# One label per thread takes 32 registers on sm_80 to sm_100. Two per thread use the stack on sm_90 with Triton 3.6.
BLOCK_H, BLOCK_W, NUM_WARPS = 8, 32, 8


@triton.jit
def _is_better(value, best):
    """Whether a score replaces the best: greater, or NaN where the best is not (the first NaN wins, as in PyTorch)."""
    return ~(value <= best) & (best == best)


@triton.jit
def _upsample_argmax_fwd_kernel(
    logits_ptr,  # [N, C, h, w], any strides
    labels_ptr,  # [N, height, width], contiguous
    C,
    h,
    w,
    height,
    width,
    scale_h,  # h / height
    scale_w,
    strides,
    COPY: tl.constexpr,  # the map keeps its size
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """labels[n, y, x] = argmax over c of logits[n, c] sampled bilinearly at (y, x); the lowest of equal classes."""
    n = tl.program_id(2).to(tl.int64)
    o_y = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    o_x = tl.program_id(0) * BLOCK_W + tl.arange(0, BLOCK_W)
    m = (o_y < height)[:, None] & (o_x < width)[None, :]

    row0, row1, col0, col1, w_y, w_x = corners(o_y, o_x, h, w, scale_h, scale_w, strides)
    best = tl.full((BLOCK_H, BLOCK_W), float("-inf"), tl.float32)
    label = tl.zeros((BLOCK_H, BLOCK_W), tl.int32)
    plane = logits_ptr + n * strides[0]
    for c in range(C):
        value = load_logits(plane, row0, row1, col0, col1, w_y, w_x, m, COPY)
        better = _is_better(value, best)
        best = tl.where(better, value, best)
        label = tl.where(better, c, label)
        plane += strides[1]

    out = labels_ptr + (n * height + o_y.to(tl.int64)[:, None]) * width + o_x[None, :]
    tl.store(out, label.to(tl.uint8), mask=m)


@triton.jit
def _vote(best, label, c, upper, lower, w_y):
    value = upper * (1.0 - w_y) + lower * w_y
    better = _is_better(value, best)
    return tl.where(better, value, best), tl.where(better, c, label)


@triton.jit
def _upsample_argmax_fwd_double_kernel(
    logits_ptr,  # [N, C, h, w], any strides
    labels_ptr,  # [N, 2 * h, 2 * w], contiguous
    C,
    h,
    w,
    strides,
    WIDE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """The same where the map doubles: labels (2i - 1, 2i) x (2j - 1, 2j) sample the same four logits, in one thread."""
    n = tl.program_id(2).to(tl.int64)
    i = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    j = tl.program_id(0) * BLOCK_W + tl.arange(0, BLOCK_W)
    y0, y1, w_top = sample(tl.maximum(2 * i - 1, 0), 0.5, h)
    x0, x1, w_left = sample(tl.maximum(2 * j - 1, 0), 0.5, w)
    _, _, w_bottom = sample(2 * i, 0.5, h)
    _, _, w_right = sample(2 * j, 0.5, w)
    w_top, w_bottom, w_left, w_right = w_top[:, None], w_bottom[:, None], w_left[None, :], w_right[None, :]
    row0, row1 = (index(y0, WIDE) * strides[2])[:, None], (index(y1, WIDE) * strides[2])[:, None]
    col0, col1 = (index(x0, WIDE) * strides[3])[None, :], (index(x1, WIDE) * strides[3])[None, :]
    image = logits_ptr + n * strides[0]
    at_00, at_01, at_10, at_11 = (
        image + (row0 + col0),
        image + (row0 + col1),
        image + (row1 + col0),
        image + (row1 + col1),
    )
    best_00 = tl.full((BLOCK_H, BLOCK_W), float("-inf"), tl.float32)
    best_01, best_10, best_11 = best_00, best_00, best_00
    label_00 = tl.zeros((BLOCK_H, BLOCK_W), tl.int32)
    label_01, label_10, label_11 = label_00, label_00, label_00
    for c in range(C):
        o_c = index(tl.cast(c, tl.int32), WIDE) * strides[1]
        b_00, b_01 = tl.load(at_00 + o_c).to(tl.float32), tl.load(at_01 + o_c).to(tl.float32)
        b_10, b_11 = tl.load(at_10 + o_c).to(tl.float32), tl.load(at_11 + o_c).to(tl.float32)
        upper = b_00 * (1.0 - w_left) + b_01 * w_left  # as in interpolate
        lower = b_10 * (1.0 - w_left) + b_11 * w_left
        best_00, label_00 = _vote(best_00, label_00, c, upper, lower, w_top)
        best_10, label_10 = _vote(best_10, label_10, c, upper, lower, w_bottom)
        upper = b_00 * (1.0 - w_right) + b_01 * w_right
        lower = b_10 * (1.0 - w_right) + b_11 * w_right
        best_01, label_01 = _vote(best_01, label_01, c, upper, lower, w_top)
        best_11, label_11 = _vote(best_11, label_11, c, upper, lower, w_bottom)

    m_top, m_bottom = ((i > 0) & (i <= h))[:, None], (i < h)[:, None]
    m_left, m_right = ((j > 0) & (j <= w))[None, :], (j < w)[None, :]
    # The label at (2i - 1, 2j - 1) of an image of 2h x 2w.
    out = labels_ptr + ((n * 2 * h + 2 * i.to(tl.int64)[:, None] - 1) * (2 * w) + (2 * j - 1)[None, :])
    tl.store(out, label_00.to(tl.uint8), mask=m_top & m_left)
    tl.store(out + 1, label_01.to(tl.uint8), mask=m_top & m_right)
    tl.store(out + 2 * w, label_10.to(tl.uint8), mask=m_bottom & m_left)
    tl.store(out + (2 * w + 1), label_11.to(tl.uint8), mask=m_bottom & m_right)


def upsample_argmax(logits: Tensor, height: int, width: int) -> Tensor:
    """Return the class of every pixel of a ``height`` x ``width`` image, as uint8 [N, height, width].

    The logits are sampled as ``F.interpolate(logits, (height, width), mode="bilinear", align_corners=False)`` does it
    and compared in float32; of equal classes the lowest wins, and NaN counts as the largest value.

    Args:
        logits: [N, C, h, w] in float32, float16 or bfloat16, with any strides; C is at most 256.
    """
    if logits.dim() != 4 or min(logits.shape[1:]) == 0 or logits.shape[1] > 256:
        raise ValueError(f"upsample_argmax: logits must be [N, 1 to 256, h, w], got {list(logits.shape)}")
    if logits.dtype not in DTYPES:
        raise TypeError(f"upsample_argmax: logits must be float32, float16 or bfloat16 for Triton, got {logits.dtype}")
    if height < 1 or width < 1:
        raise ValueError(f"upsample_argmax: the output size must be at least 1x1, got {height}x{width}")
    n, classes, h, w = logits.shape
    labels = logits.new_empty((n, height, width), dtype=torch.uint8)
    if n == 0:
        return labels
    double = (height, width) == (2 * h, 2 * w)
    across, down = (w + 1, h + 1) if double else (width, height)
    grid = (cdiv(across, BLOCK_W), cdiv(down, BLOCK_H), n)
    # Labels must not depend on which multiplications a compiler version fuses.
    options = {"BLOCK_H": BLOCK_H, "BLOCK_W": BLOCK_W, "num_warps": NUM_WARPS, "enable_fp_fusion": False}
    with torch.cuda.device_of(logits):  # Triton launches on the current device
        if double:
            _upsample_argmax_fwd_double_kernel[grid](
                logits, labels, classes, h, w, logits.stride(), WIDE=wide(logits), **options
            )
        else:
            _upsample_argmax_fwd_kernel[grid](
                logits, labels, classes, h, w, height, width, h / height, w / width, logits.stride(),
                COPY=(h, w) == (height, width),
                **options,
            )  # fmt: skip
    return labels
