"""``upsample_argmax`` in Triton: labels at full size from small logits; full-size logits are never stored."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyperseg.kernels.language import corners, load_logits
from hyperseg.kernels.launch import DTYPES

# One label per thread takes 32 registers on sm_80 to sm_100. Two per thread use the stack on sm_90 with Triton 3.6.
BLOCK_H, BLOCK_W, NUM_WARPS = 8, 32, 8


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
        # Greater, or NaN where the best is not: the first NaN wins, as in torch.argmax.
        better = (value > best) | ((value != value) & (best == best))
        best = tl.where(better, value, best)
        label = tl.where(better, c, label)
        plane += strides[1]

    out = labels_ptr + (n * height + o_y.to(tl.int64)[:, None]) * width + o_x[None, :]
    tl.store(out, label.to(tl.uint8), mask=m)


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
    grid = (triton.cdiv(width, BLOCK_W), triton.cdiv(height, BLOCK_H), n)
    with torch.cuda.device_of(logits):  # Triton launches on the current device
        _upsample_argmax_fwd_kernel[grid](
            logits, labels, classes, h, w, height, width, h / height, w / width, logits.stride(),
            COPY=(h, w) == (height, width),
            BLOCK_H=BLOCK_H,
            BLOCK_W=BLOCK_W,
            num_warps=NUM_WARPS,
            # Labels must not depend on which multiplications a compiler version fuses.
            enable_fp_fusion=False,
        )  # fmt: skip
    return labels
