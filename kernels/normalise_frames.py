"""``normalise_frames`` in Triton: uint8 frames to normalised, padded images, one launch."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyperseg.kernels.language import base, index, wide
from hyperseg.kernels.launch import DTYPES
from hyperseg.kernels.parts.maps import channels_last_map

BLOCK = 1024  # values of a row per program


@triton.jit
def _normalise_frames_fwd_kernel(
    frames_ptr,  # uint8 [N, H, W, 3], any strides
    scale_ptr,  # [3], float32
    shift_ptr,  # [3], float32
    y_ptr,  # [N, height, width, 3]
    frame_size,  # (H, W)
    height,
    values,  # 3 * width
    frame_strides,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """y[v] = frame[v] * scale + shift, for the values v of a row; rows and columns beyond the frame repeat its last."""
    row = tl.program_id(0)
    n = row // height
    y = tl.minimum(row % height, frame_size[0] - 1)
    o_v = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m_v = o_v < values
    x, colour = tl.minimum(o_v // 3, frame_size[1] - 1), o_v % 3
    image = base(frames_ptr, n, frame_strides[0])
    o_x = index(y, WIDE) * frame_strides[1] + index(x, WIDE) * frame_strides[2] + index(colour, WIDE) * frame_strides[3]
    b_x = tl.load(image + o_x, mask=m_v, other=0).to(tl.float32)
    b_y = b_x * tl.load(scale_ptr + colour) + tl.load(shift_ptr + colour)
    tl.store(y_ptr + row.to(tl.int64) * values + o_v, b_y.to(y_ptr.dtype.element_ty), mask=m_v)


def normalise_frames(frames: Tensor, scale: Tensor, shift: Tensor, like: Tensor, height: int, width: int) -> Tensor:
    """Compute ``hyperseg.ops.normalise_frames``; images in float32, float16 or bfloat16."""
    if like.dtype not in DTYPES:
        raise TypeError(f"normalise_frames: like must be float32, float16 or bfloat16 for Triton, got {like.dtype}")
    n = frames.shape[0]
    y = channels_last_map(frames, 3, height, width, like.dtype)
    with torch.cuda.device_of(frames):  # Triton launches on the current device
        _normalise_frames_fwd_kernel[(n * height, triton.cdiv(3 * width, BLOCK))](
            frames, scale.contiguous(), shift.contiguous(), y,
            tuple(frames.shape[1:3]), height, 3 * width, frames.stride(),
            WIDE=wide(frames.permute(0, 3, 1, 2)),
            BLOCK=BLOCK,
            num_warps=4,
            enable_fp_fusion=True,
        )  # fmt: skip
    return y
