"""Device functions: index arithmetic, maps cut into patches, halos, bilinear sampling, activations, partial sums.

A map is [N, C, H, W] with any strides. A *window map* holds the window of every patch (its pixels and one more on each
side) one beside the other: [N, C, fh * (ph + 2), fw * (pw + 2)], so that it is a map of larger patches without halos.
"""

import triton
import triton.language as tl
from torch import Tensor

NONE, RELU, RELU6 = 0, 1, 2


@triton.jit
def reflect(i, size):
    """The pixel that padding by reflection shows at ``i``: -1 is 1, ``size`` is ``size - 2``."""
    last = size - 1
    return last - tl.abs(last - tl.abs(i))


@triton.jit
def sample(o, scale, size):
    """Where outputs ``o`` sample an axis of ``size`` values: (low, high, weight of high), half-pixel centres."""
    source = tl.maximum((o.to(tl.float32) + 0.5) * scale - 0.5, 0.0)
    low = tl.minimum(source.to(tl.int32), size - 1)
    high = tl.minimum(low + 1, size - 1)
    weight = tl.minimum(source - low.to(tl.float32), 1.0)
    return low, high, weight


@triton.jit
def share_of(o, outputs, scale, size):
    """How much of ``outputs`` is the value at ``o``, and what else they sample: (share, low, high, weight of high)."""
    low, high, weight = sample(outputs, scale, size)
    share = tl.where(low == o, 1.0 - weight, 0.0) + tl.where(high == o, weight, 0.0)
    return share, low, high, weight


@triton.jit
def first_reader(o, scale, size):
    """The first output that samples the value at ``o``: the one behind ``(o - 1/2) / scale - 1/2``."""
    first = tl.maximum(tl.floor((o.to(tl.float32) - 0.5) / scale - 0.5), 0.0).to(tl.int32)
    share, _, _, _ = share_of(o, first, scale, size)  # 0 where this one just does not
    return tl.where(share == 0.0, first + 1, first)


def readers(size: int, count: int) -> int:
    """At most so many of ``count`` outputs sample one of ``size`` values: those less than a step away."""
    return min(count, -(-2 * count // size))


@triton.jit
def place(patch, grid_h, grid_w):
    """(image, row, column) of a patch."""
    return patch // (grid_h * grid_w), patch // grid_w % grid_h, patch % grid_w


@triton.jit
def block_of_pixels(program, grid_h, grid_w, PATCH_H: tl.constexpr, PATCH_W: tl.constexpr, BLOCK_M: tl.constexpr):
    """The pixels of a program that takes BLOCK_M of a patch: (image, patch row and column, y, x, which exist)."""
    BLOCKS: tl.constexpr = (PATCH_H * PATCH_W + BLOCK_M - 1) // BLOCK_M
    n, py, px = place(program // BLOCKS, grid_h, grid_w)
    o_r = program % BLOCKS * BLOCK_M + tl.arange(0, BLOCK_M)
    return n, py, px, o_r // PATCH_W, o_r % PATCH_W, o_r < PATCH_H * PATCH_W


@triton.jit
def base(ptr, n, stride_n):
    """Where image ``n`` begins; what is added to it may be narrow (see ``index``)."""
    return ptr + n.to(tl.int64) * stride_n


@triton.jit
def index(i, WIDE: tl.constexpr):
    """``i`` as it has to be before it is multiplied by a stride: int64 only where an image is larger than int32 counts.

    A block of int64 addresses takes as many registers as a block of float32 values twice over.
    """
    return i.to(tl.int64) if WIDE else i.to(tl.int32)


def wide(*maps: Tensor) -> bool:
    """Whether addresses within one image of any of these maps need int64."""
    last = [sum((size - 1) * step for size, step in zip(m.shape[1:], m.stride()[1:], strict=True)) for m in maps]
    return max(last) >= 2**31


@triton.jit
def windowed(i, patch, size, patch_size, HALO: tl.constexpr):
    """The pixel of an axis that is ``i`` in the window of a patch; without halo, in the patch."""
    if HALO:
        return reflect(patch * (patch_size - 2) + i - 1, size)
    return patch * patch_size + i


@triton.jit
def within(m_pixel, o_c, CHANNELS: tl.constexpr):
    """The mask of [pixels, channels]; a block that divides the channels needs none of its own."""
    if tl.constexpr(CHANNELS) % o_c.shape[0] == 0:
        return m_pixel[:, None] & (o_c >= 0)[None, :]
    return m_pixel[:, None] & (o_c < CHANNELS)[None, :]


@triton.jit
def load_map(image, o_pixel, o_c, m_pixel, CHANNELS: tl.constexpr, stride_c, WIDE: tl.constexpr):
    """[pixels, channels] of an image: ``o_pixel`` addresses pixels, ``o_c`` counts channels."""
    at = image + (o_pixel[:, None] + (index(o_c, WIDE) * stride_c)[None, :])
    return tl.load(at, mask=within(m_pixel, o_c, CHANNELS), other=0.0)


@triton.jit
def store_map(image, b, o_pixel, o_c, m_pixel, CHANNELS: tl.constexpr, stride_c, WIDE: tl.constexpr):
    """The counterpart of ``load_map``."""
    at = image + (o_pixel[:, None] + (index(o_c, WIDE) * stride_c)[None, :])
    tl.store(at, b.to(image.dtype.element_ty), mask=within(m_pixel, o_c, CHANNELS))


@triton.jit
def load_resized(
    image, y, x, o_c, m_pixel, CHANNELS: tl.constexpr, h, w, scale_h, scale_w, stride_c, stride_h, stride_w,
    WIDE: tl.constexpr,
):  # fmt: skip
    """The same of an image of h x w pixels, sampled bilinearly at pixels (y, x) of a larger or smaller one."""
    y0, y1, w_y = sample(y, scale_h, h)
    x0, x1, w_x = sample(x, scale_w, w)
    row0, row1 = index(y0, WIDE) * stride_h, index(y1, WIDE) * stride_h
    col0, col1 = index(x0, WIDE) * stride_w, index(x1, WIDE) * stride_w
    b00 = load_map(image, row0 + col0, o_c, m_pixel, CHANNELS, stride_c, WIDE).to(tl.float32)
    b01 = load_map(image, row0 + col1, o_c, m_pixel, CHANNELS, stride_c, WIDE).to(tl.float32)
    w_x, w_y = w_x[:, None], w_y[:, None]
    upper = b00 * (1.0 - w_x) + b01 * w_x  # of infinities an infinity, as in PyTorch; their difference is NaN
    b10 = load_map(image, row1 + col0, o_c, m_pixel, CHANNELS, stride_c, WIDE).to(tl.float32)
    b11 = load_map(image, row1 + col1, o_c, m_pixel, CHANNELS, stride_c, WIDE).to(tl.float32)
    lower = b10 * (1.0 - w_x) + b11 * w_x
    return upper * (1.0 - w_y) + lower * w_y


@triton.jit
def reflections(i, size, which):
    """Where pixels ``i`` of an axis are seen: at ``i`` (0), reflected before the first (1), behind the last (2).

    The pixel beyond the border, and whether there is one; the border is one pixel wide.
    """
    v = tl.where(which == 0, i, tl.where(which == 1, -i, 2 * (size - 1) - i))
    distance = tl.where(which == 0, 0, tl.where(which == 1, i - 1, i - (size - 2)))
    return v, distance == 0


@triton.jit
def coordinate(i, size):
    """-1 to 1 between the centres of the first and the last pixel; -1 where there is only one (SPEC F)."""
    return i.to(tl.float32) * (2.0 / tl.maximum(size - 1, 1).to(tl.float32)) - 1.0


@triton.jit
def activate(v, ACTIVATION: tl.constexpr):
    """0 nothing, 1 ReLU, 2 ReLU6; NaN stays NaN."""
    if ACTIVATION >= 1:
        v = tl.where(v < 0.0, 0.0, v)
    if ACTIVATION == 2:
        v = tl.where(v > 6.0, 6.0, v)
    return v


@triton.jit
def normalised(v, o_c, channels, scale_ptr, shift_ptr):
    """ReLU6 of the norm of [pixels, channels]."""
    m = o_c < channels
    scale = tl.load(scale_ptr + o_c, mask=m, other=0.0)
    shift = tl.load(shift_ptr + o_c, mask=m, other=0.0)
    return activate(v.to(tl.float32) * scale[None, :] + shift[None, :], 2)


@triton.jit
def through_relu6(gradient, z, o_c, channels, scale_ptr, shift_ptr):
    """The gradient of what ``normalised`` was given to clamp: 0 on both flat sides; through NaN it passes."""
    m = o_c < channels
    scale = tl.load(scale_ptr + o_c, mask=m, other=0.0)
    shift = tl.load(shift_ptr + o_c, mask=m, other=0.0)
    y = z * scale[None, :] + shift[None, :]
    return tl.where((y <= 0.0) | (y >= 6.0), 0.0, gradient)


@triton.jit
def store_moments(partial_ptr, row, v, m_pixel, o_c, channels):
    """Pixels, mean and squared deviations of each channel of this block, as row ``row`` of [rows, 3, channels]."""
    count = tl.sum(m_pixel.to(tl.float32), 0)
    mean = tl.sum(tl.where(m_pixel[:, None], v, 0.0), 0) / count
    deviation = tl.where(m_pixel[:, None], v - mean[None, :], 0.0)
    m_c = o_c < channels
    at = partial_ptr + row.to(tl.int64) * 3 * channels + o_c
    tl.store(at, tl.zeros_like(mean) + count, mask=m_c)
    tl.store(at + channels, mean, mask=m_c)
    tl.store(at + 2 * channels, tl.sum(deviation * deviation, 0), mask=m_c)


@triton.jit
def store_sums(partial_ptr, row, gradient, z, m_pixel, o_c, channels):
    """Sums of the gradient and of gradient * z of this block, as row ``row`` of [rows, 2, channels]."""
    gradient = tl.where(m_pixel[:, None], gradient, 0.0)
    at = partial_ptr + row.to(tl.int64) * 2 * channels + o_c
    tl.store(at, tl.sum(gradient, 0), mask=o_c < channels)
    tl.store(at + channels, tl.sum(gradient * z, 0), mask=o_c < channels)
