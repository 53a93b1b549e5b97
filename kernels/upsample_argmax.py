"""Labels at full size straight from small logits, in Triton: the full-size logits never exist."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyperseg.kernels.language import sample
from hyperseg.kernels.launch import DTYPES

# One label a thread: 32 registers on sm_80 to sm_100. Two a thread use the stack on sm_90 with Triton 3.6.
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
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    COPY: tl.constexpr,  # the map keeps its size: nothing is sampled, and no neighbour's infinity times 0 is NaN
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """labels[n, y, x] = argmax over c of logits[n, c] sampled bilinearly at (y, x); the lowest of equal classes."""
    n = tl.program_id(2).to(tl.int64)
    o_y = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    o_x = tl.program_id(0) * BLOCK_W + tl.arange(0, BLOCK_W)
    m = (o_y < height)[:, None] & (o_x < width)[None, :]

    y0, y1, w_y = sample(o_y, scale_h, h)
    x0, x1, w_x = sample(o_x, scale_w, w)
    row0, row1 = (y0.to(tl.int64) * stride_h)[:, None], (y1.to(tl.int64) * stride_h)[:, None]
    col0, col1 = (x0.to(tl.int64) * stride_w)[None, :], (x1.to(tl.int64) * stride_w)[None, :]
    w_y, w_x = w_y[:, None], w_x[None, :]

    best = tl.full((BLOCK_H, BLOCK_W), float("-inf"), tl.float32)
    label = tl.zeros((BLOCK_H, BLOCK_W), tl.int32)
    plane = logits_ptr + n * stride_n
    for c in range(C):
        b00 = tl.load(plane + row0 + col0, mask=m, other=0.0).to(tl.float32)
        b01 = tl.load(plane + row0 + col1, mask=m, other=0.0).to(tl.float32)
        b10 = tl.load(plane + row1 + col0, mask=m, other=0.0).to(tl.float32)
        b11 = tl.load(plane + row1 + col1, mask=m, other=0.0).to(tl.float32)
        upper = b00 * (1.0 - w_x) + b01 * w_x
        lower = b10 * (1.0 - w_x) + b11 * w_x
        value = b00 if COPY else upper * (1.0 - w_y) + lower * w_y
        # Greater, or NaN where the best is not: the first NaN wins, as in torch.argmax.
        better = (value > best) | ((value != value) & (best == best))
        best = tl.where(better, value, best)
        label = tl.where(better, c, label)
        plane += stride_c

    out = labels_ptr + (n * height + o_y.to(tl.int64)[:, None]) * width + o_x[None, :]
    tl.store(out, label.to(tl.uint8), mask=m)


def upsample_argmax(logits: Tensor, height: int, width: int) -> Tensor:
    """The class of every pixel of a ``height`` x ``width`` image, as uint8 [N, height, width].

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
    with torch.cuda.device_of(logits):  # Triton launches on the current device, whatever the tensors' is
        _upsample_argmax_fwd_kernel[grid](
            logits,
            labels,
            classes,
            h,
            w,
            height,
            width,
            h / height,
            w / width,
            *logits.stride(),
            COPY=(h, w) == (height, width),
            BLOCK_H=BLOCK_H,
            BLOCK_W=BLOCK_W,
            num_warps=NUM_WARPS,
            # Labels must not depend on which products a compiler version chose to fuse.
            enable_fp_fusion=False,
        )
    return labels
