"""Device functions: indices, patches, maps, halos, bilinear sampling, activations, norms, partial sums.

A map is [N, C, H, W] with any strides; kernels get them as one tuple. A *window map* holds the window of every patch
(its pixels and one more on each side) next to each other: [N, C, fh * (ph + 2), fw * (pw + 2)]. It is a map of larger
patches that need no halo. ``readers`` and ``wide`` run on the host and compute arguments of device functions.
"""

import triton
import triton.language as tl
from torch import Tensor

NONE, RELU, RELU6 = 0, 1, 2


# Indices and addresses


@triton.jit
def index(i, WIDE: tl.constexpr):
    """Convert ``i`` to the type in which it is multiplied by a stride: int64 only where an image needs it.

    A block of int64 addresses takes twice the registers of a block of float32 values.
    """
    return i.to(tl.int64) if WIDE else i.to(tl.int32)


def wide(*maps: Tensor) -> bool:
    """Return whether addresses within one image of any of these maps need int64."""
    last = [sum((size - 1) * step for size, step in zip(m.shape[1:], m.stride()[1:], strict=True)) for m in maps]
    return max(last) >= 2**31


@triton.jit
def base(ptr, i, stride):
    """Return the address of item ``i``, computed in int64; offsets within it may be int32 (see ``index``)."""
    return ptr + i.to(tl.int64) * stride


@triton.jit
def patch_base(ptr, n, py, px, strides):
    """Return the address of the parameters of one patch, in weights [N, fh, fw, P]."""
    return base(base(base(ptr, n, strides[0]), py, strides[1]), px, strides[2])


@triton.jit
def pixel_offset(y, x, strides, WIDE: tl.constexpr):
    """Return the offset of pixels (y, x) within one channel of an image."""
    return index(y, WIDE) * strides[2] + index(x, WIDE) * strides[3]


@triton.jit
def at(image, o_pixel, o_c, strides, WIDE: tl.constexpr):
    """Return the addresses [pixels, channels] of an image, given the pixels' offsets and the channels' numbers."""
    return image + (o_pixel[:, None] + (index(o_c, WIDE) * strides[1])[None, :])


# Patches


@triton.jit
def place(patch, grid):
    """Return (image, row, column) of a patch, counted through all images; ``grid`` is (rows, columns)."""
    return patch // (grid[0] * grid[1]), patch // grid[1] % grid[0], patch % grid[1]


@triton.jit
def block_of_pixels(program, grid, PATCH_H: tl.constexpr, PATCH_W: tl.constexpr, BLOCK_M: tl.constexpr):
    """Return the pixels of a program that takes BLOCK_M of a patch: (image, patch row, patch column, y, x, mask)."""
    BLOCKS: tl.constexpr = (PATCH_H * PATCH_W + BLOCK_M - 1) // BLOCK_M
    n, py, px = place(program // BLOCKS, grid)
    o_r = program % BLOCKS * BLOCK_M + tl.arange(0, BLOCK_M)
    return n, py, px, o_r // PATCH_W, o_r % PATCH_W, o_r < PATCH_H * PATCH_W


@triton.jit
def windowed(i, patch, size, patch_size, HALO: tl.constexpr):
    """Return the pixel of an axis at position ``i`` of a patch's window; without HALO, at ``i`` of the patch."""
    if HALO:
        return reflect(patch * (patch_size - 2) + i - 1, size)
    return patch * patch_size + i


# Padding by reflection


@triton.jit
def reflect(i, size):
    """Return the pixel that padding by reflection shows at ``i``: 1 at -1, ``size - 2`` at ``size``."""
    last = size - 1
    return last - tl.abs(last - tl.abs(i))


@triton.jit
def reflections(i, size, which):
    """Return where padding of one pixel shows pixels ``i`` of an axis, and for which of them it does.

    ``which`` selects: 0 the pixel itself, 1 its reflection before the first pixel, 2 that after the last.
    """
    v = tl.where(which == 0, i, tl.where(which == 1, -i, 2 * (size - 1) - i))
    distance = tl.where(which == 0, 0, tl.where(which == 1, i - 1, i - (size - 2)))
    return v, distance == 0


# Loads and stores of maps


@triton.jit
def within(m_pixel, o_c, CHANNELS: tl.constexpr):
    """Return the mask of [pixels, channels]; channels in whole blocks need no mask of their own."""
    if tl.constexpr(CHANNELS) % o_c.shape[0] == 0:
        return m_pixel[:, None] & (o_c >= 0)[None, :]
    return m_pixel[:, None] & (o_c < CHANNELS)[None, :]


@triton.jit
def load_map(image, o_pixel, o_c, m_pixel, CHANNELS: tl.constexpr, strides, WIDE: tl.constexpr):
    """Load [pixels, channels] of an image; ``o_pixel`` are offsets of pixels, ``o_c`` numbers of channels."""
    x = at(image, o_pixel, o_c, strides, WIDE)
    return tl.load(x, mask=within(m_pixel, o_c, CHANNELS), other=0.0)


@triton.jit
def store_map(image, b, o_pixel, o_c, m_pixel, CHANNELS: tl.constexpr, strides, WIDE: tl.constexpr):
    """Store [pixels, channels] of an image, the counterpart of ``load_map``."""
    out = at(image, o_pixel, o_c, strides, WIDE)
    tl.store(out, b.to(image.dtype.element_ty), mask=within(m_pixel, o_c, CHANNELS))


# Bilinear sampling


@triton.jit
def sample(o, scale, size):
    """Return where outputs ``o`` sample an axis of ``size`` values: (low, high, weight of high), half-pixel centres."""
    source = tl.maximum((o.to(tl.float32) + 0.5) * scale - 0.5, 0.0)
    low = tl.minimum(source.to(tl.int32), size - 1)
    high = tl.minimum(low + 1, size - 1)
    weight = tl.minimum(source - low.to(tl.float32), 1.0)
    return low, high, weight


@triton.jit
def interpolate(b00, b01, b10, b11, w_y, w_x):
    """Return the bilinear interpolation of four blocks; of infinities an infinity, as in PyTorch."""
    upper = b00 * (1.0 - w_x) + b01 * w_x
    lower = b10 * (1.0 - w_x) + b11 * w_x
    return upper * (1.0 - w_y) + lower * w_y


@triton.jit
def load_resized(
    image, y, x, o_c, m_pixel, CHANNELS: tl.constexpr, h, w, scale_h, scale_w, strides, WIDE: tl.constexpr,
):  # fmt: skip
    """Load [pixels, channels] of an image of h x w pixels, sampled at pixels (y, x) of a map of another size."""
    y0, y1, w_y = sample(y, scale_h, h)
    x0, x1, w_x = sample(x, scale_w, w)
    row0, row1 = index(y0, WIDE) * strides[2], index(y1, WIDE) * strides[2]
    col0, col1 = index(x0, WIDE) * strides[3], index(x1, WIDE) * strides[3]
    b00 = load_map(image, row0 + col0, o_c, m_pixel, CHANNELS, strides, WIDE).to(tl.float32)
    b01 = load_map(image, row0 + col1, o_c, m_pixel, CHANNELS, strides, WIDE).to(tl.float32)
    w_x, w_y = w_x[:, None], w_y[:, None]
    upper = b00 * (1.0 - w_x) + b01 * w_x  # as interpolate, but with fewer blocks held at a time
    b10 = load_map(image, row1 + col0, o_c, m_pixel, CHANNELS, strides, WIDE).to(tl.float32)
    b11 = load_map(image, row1 + col1, o_c, m_pixel, CHANNELS, strides, WIDE).to(tl.float32)
    lower = b10 * (1.0 - w_x) + b11 * w_x
    return upper * (1.0 - w_y) + lower * w_y


@triton.jit
def corners(o_y, o_x, h, w, scale_h, scale_w, strides):
    """Return pairs of row offsets, column offsets and weights with which pixels sample an image of h x w."""
    y0, y1, w_y = sample(o_y, scale_h, h)
    x0, x1, w_x = sample(o_x, scale_w, w)
    row0, row1 = (y0.to(tl.int64) * strides[2])[:, None], (y1.to(tl.int64) * strides[2])[:, None]
    col0, col1 = (x0.to(tl.int64) * strides[3])[None, :], (x1.to(tl.int64) * strides[3])[None, :]
    return row0, row1, col0, col1, w_y[:, None], w_x[None, :]


@triton.jit
def load_logits(plane, row0, row1, col0, col1, w_y, w_x, m, COPY: tl.constexpr):
    """Load one class's logits at blocks of pixels, sampled bilinearly from four offsets each, in float32.

    With COPY the map keeps its size: nothing is sampled, and no neighbour's infinity times 0 gives NaN.
    """
    b00 = tl.load(plane + row0 + col0, mask=m, other=0.0).to(tl.float32)
    if COPY:
        value = b00
    else:
        b01 = tl.load(plane + row0 + col1, mask=m, other=0.0).to(tl.float32)
        b10 = tl.load(plane + row1 + col0, mask=m, other=0.0).to(tl.float32)
        b11 = tl.load(plane + row1 + col1, mask=m, other=0.0).to(tl.float32)
        value = interpolate(b00, b01, b10, b11, w_y, w_x)
    return value


@triton.jit
def share_of(o, outputs, scale, size):
    """Return the weight of the value at ``o`` in ``outputs``, and their samples: (share, low, high, weight of high)."""
    low, high, weight = sample(outputs, scale, size)
    share = tl.where(low == o, 1.0 - weight, 0.0) + tl.where(high == o, weight, 0.0)
    return share, low, high, weight


@triton.jit
def first_reader(o, scale, size):
    """Return the first output that samples the value at ``o``: the first one after ``(o - 1/2) / scale - 1/2``."""
    first = tl.maximum(tl.floor((o.to(tl.float32) - 0.5) / scale - 0.5), 0.0).to(tl.int32)
    share, _, _, _ = share_of(o, first, scale, size)  # 0 where rounding made it one too early
    return tl.where(share == 0.0, first + 1, first)


def readers(size: int, count: int) -> int:
    """Return an upper bound on how many of ``count`` outputs sample one of ``size`` values."""
    return min(count, -(-2 * count // size))


@triton.jit
def coordinate(i, size):
    """Return -1 to 1 between the centres of the first and the last pixel; -1 if there is only one (SPEC F)."""
    return i.to(tl.float32) * (2.0 / tl.maximum(size - 1, 1).to(tl.float32)) - 1.0


# Activations and norms


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)), by approximations of a few units in the last place: a division takes nine instructions more.

    exp(-x) may be infinite: then the result is 0.
    """
    root = tl.rsqrt(1.0 + tl.exp2(x * -1.4426950408889634))
    return root * root


@triton.jit
def silu(x):
    """x * sigmoid(x)."""
    return x * sigmoid(x)


@triton.jit
def activate(v, ACTIVATION: tl.constexpr):
    """Apply nothing (0), ReLU (1) or ReLU6 (2); NaN stays NaN."""
    if ACTIVATION >= 1:
        v = tl.maximum(v, 0.0, propagate_nan=tl.PropagateNan.ALL)
    if ACTIVATION == 2:
        v = tl.minimum(v, 6.0, propagate_nan=tl.PropagateNan.ALL)
    return v


@triton.jit
def normalised(v, o_c, channels, scale_ptr, shift_ptr):
    """relu6(scale * v + shift) of [pixels, channels], in float32."""
    m = o_c < channels
    scale = tl.load(scale_ptr + o_c, mask=m, other=0.0)
    shift = tl.load(shift_ptr + o_c, mask=m, other=0.0)
    return activate(v.to(tl.float32) * scale[None, :] + shift[None, :], 2)


@triton.jit
def through_relu6(gradient, z, o_c, channels, scale_ptr, shift_ptr):
    """Return the gradient before the ReLU6 of ``normalised``: 0 where it is flat; at NaN the gradient passes."""
    m = o_c < channels
    scale = tl.load(scale_ptr + o_c, mask=m, other=0.0)
    shift = tl.load(shift_ptr + o_c, mask=m, other=0.0)
    y = z * scale[None, :] + shift[None, :]
    return tl.where((y <= 0.0) | (y >= 6.0), 0.0, gradient)


# Partial sums


@triton.jit
def store_moments(partial_ptr, row, v, m_pixel, o_c, channels):
    """Store pixel count, mean and squared deviations per channel of a block, as row ``row`` of [rows, 3, channels]."""
    count = tl.sum(m_pixel.to(tl.float32), 0)
    mean = tl.sum(tl.where(m_pixel[:, None], v, 0.0), 0) / count
    deviation = tl.where(m_pixel[:, None], v - mean[None, :], 0.0)
    m_c = o_c < channels
    out = partial_ptr + row.to(tl.int64) * 3 * channels + o_c
    tl.store(out, tl.zeros_like(mean) + count, mask=m_c)
    tl.store(out + channels, mean, mask=m_c)
    tl.store(out + 2 * channels, tl.sum(deviation * deviation, 0), mask=m_c)


@triton.jit
def store_sums(partial_ptr, row, gradient, z, m_pixel, o_c, channels):
    """Store the sums of gradient and gradient * z of a block, as row ``row`` of [rows, 2, channels]."""
    gradient = tl.where(m_pixel[:, None], gradient, 0.0)
    out = partial_ptr + row.to(tl.int64) * 2 * channels + o_c
    tl.store(out, tl.sum(gradient, 0), mask=o_c < channels)
    tl.store(out + channels, tl.sum(gradient * z, 0), mask=o_c < channels)
