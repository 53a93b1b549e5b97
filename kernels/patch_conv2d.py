"""Patch-wise convolution in Triton: a program multiplies pixels of one patch by that patch's own weights.

Backward, every patch first computes the gradient of its window, the pixels it reads with those around it. Then each
pixel of the map collects from the windows that show it, itself or in the padding. A 1x1 window is the patch, and the
first step already writes the answer.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyperseg.kernels import launch
from hyperseg.kernels.language import reflect
from hyperseg.kernels.launch import DTYPES, block, precision
from hyperseg.kernels.parts.maps import output_map

MOST_PRODUCTS = 2048  # that a program without tensor cores holds
SUM_BLOCK = 128  # pixels that a program of the last kernel sums


@triton.jit
def _padded(o, size, MODE: tl.constexpr):
    """The pixel that padding shows at ``o``; -1 where it is zero."""
    if MODE == "reflect":
        shown = reflect(o, size)
    elif MODE == "replicate":
        shown = tl.minimum(tl.maximum(o, 0), size - 1)
    elif MODE == "circular":
        shown = (o + size) % size
    else:
        shown = tl.where((o >= 0) & (o < size), o, -1)
    return shown


@triton.jit
def _image(pixel, k, halo, size, MODE: tl.constexpr):
    """Where padding shows ``pixel`` for the ``k``-th time, k = 0 being itself: (position, whether it does)."""
    if MODE == "reflect":
        position = tl.where(k == 1, -pixel, 2 * (size - 1) - pixel)
        shown = tl.where(k == 1, pixel > 0, pixel < size - 1)
    elif MODE == "circular":
        position = tl.where(k == 1, pixel - size, pixel + size)
        shown = pixel == pixel
    else:  # replicated: of the first pixel ``halo`` images, then of the last
        position = tl.where(k <= halo, pixel - k, pixel + k - halo)
        shown = tl.where(k <= halo, pixel == 0, pixel == size - 1)
    shown = shown & (position >= -halo) & (position < size + halo)
    return tl.where(k == 0, pixel, position), tl.where(k == 0, pixel == pixel, shown)


@triton.jit
def _multiply(a, b, acc, DOT: tl.constexpr, PRECISION: tl.constexpr):
    """acc + a @ b: by ``tl.dot``, or for few channels or pixels product by product, summed by ``_total``."""
    if DOT:
        result = tl.dot(a, b, acc, input_precision=PRECISION)
    else:
        result = acc + a.to(tl.float32)[:, :, None] * b.to(tl.float32)[None, :, :]
    return result


@triton.jit
def _zeros(M: tl.constexpr, K: tl.constexpr, N: tl.constexpr, DOT: tl.constexpr):
    if DOT:
        acc = tl.zeros((M, N), tl.float32)
    else:
        acc = tl.zeros((M, K, N), tl.float32)
    return acc


@triton.jit
def _total(acc, DOT: tl.constexpr):
    if DOT:
        total = acc
    else:
        total = tl.sum(acc, 1)
    return total


@triton.jit
def _patch_conv2d_fwd_kernel(
    x_ptr,  # [N, C, H, W], any strides
    weights_ptr,  # [N, fh, fw, (groups * outputs) * inputs * KH * KW], any strides
    bias_ptr,  # [groups * outputs], any stride
    out_ptr,  # [N, groups * outputs, H, W], its own strides
    H,
    W,
    fh,
    fw,
    ph,
    pw,
    groups,
    inputs,  # channels of a group
    outputs,
    dilation_h,
    dilation_w,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    weights_stride_n,
    weights_stride_h,
    weights_stride_w,
    weights_stride_p,
    bias_stride,
    out_stride_n,
    out_stride_c,
    out_stride_h,
    out_stride_w,
    KH: tl.constexpr,
    KW: tl.constexpr,
    MODE: tl.constexpr,
    BIAS: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    """out[p, o] = bias[o] + sum over i and taps t of weights[o, i, t] * x[pixel p shifted by t, i], o and i of a group.

    A program: some pixels of a patch, some outputs of a group.
    """
    tile = tl.program_id(0)
    part = tile % tl.cdiv(outputs, BLOCK_O)
    tile //= tl.cdiv(outputs, BLOCK_O)
    group, tile = tile % groups, tile // groups
    run, patch = tile % tl.cdiv(ph * pw, BLOCK_P), tile // tl.cdiv(ph * pw, BLOCK_P)
    n, top, left = (patch // (fh * fw)).to(tl.int64), patch // fw % fh, patch % fw
    o_p = run * BLOCK_P + tl.arange(0, BLOCK_P)
    o_o = part * BLOCK_O + tl.arange(0, BLOCK_O)
    m_p, m_o = o_p < ph * pw, o_o < outputs
    o_y, o_x = top * ph + o_p // pw, left * pw + o_p % pw

    channels = x_ptr + n * stride_n + (group * inputs).to(tl.int64) * stride_c
    filters = (group * outputs + o_o).to(tl.int64) * inputs
    weights = weights_ptr + n * weights_stride_n + top.to(tl.int64) * weights_stride_h
    weights += left.to(tl.int64) * weights_stride_w
    acc = _zeros(BLOCK_P, BLOCK_I, BLOCK_O, DOT)
    for tap in range(KH * KW):
        y = _padded(o_y + (tap // KW - KH // 2) * dilation_h, H, MODE)
        x = _padded(o_x + (tap % KW - KW // 2) * dilation_w, W, MODE)
        m_x = m_p & (y >= 0) & (x >= 0)
        pixels = channels + y.to(tl.int64) * stride_h + x.to(tl.int64) * stride_w
        for i in range(0, inputs, BLOCK_I):
            o_i = i + tl.arange(0, BLOCK_I)
            m_i = o_i < inputs
            o_i = o_i.to(tl.int64)
            b_x = tl.load(pixels[:, None] + (o_i * stride_c)[None, :], mask=m_x[:, None] & m_i[None, :], other=0.0)
            o_w = ((filters[None, :] + o_i[:, None]) * (KH * KW) + tap) * weights_stride_p
            b_w = tl.load(weights + o_w, mask=m_i[:, None] & m_o[None, :], other=0.0)
            acc = _multiply(b_x, b_w, acc, DOT, PRECISION)

    total = _total(acc, DOT)
    channel = (group * outputs + o_o).to(tl.int64)
    if BIAS:
        total += tl.load(bias_ptr + channel * bias_stride, mask=m_o, other=0.0).to(tl.float32)[None, :]
    pixels = out_ptr + n * out_stride_n + o_y.to(tl.int64) * out_stride_h + o_x.to(tl.int64) * out_stride_w
    out = pixels[:, None] + (channel * out_stride_c)[None, :]
    tl.store(out, total.to(out_ptr.dtype.element_ty), mask=m_p[:, None] & m_o[None, :])


@triton.jit
def _patch_conv2d_bwd_windows_kernel(
    grad_ptr,  # [N, groups * outputs, H, W], any strides
    weights_ptr,  # [N, fh, fw, (groups * outputs) * inputs * KH * KW], any strides
    windows_ptr,  # [N, groups * inputs, fh, fw, ph + 2 * halo_h, pw + 2 * halo_w], its own strides
    fh,
    fw,
    ph,
    pw,
    groups,
    inputs,
    outputs,
    dilation_h,
    dilation_w,
    grad_stride_n,
    grad_stride_c,
    grad_stride_h,
    grad_stride_w,
    weights_stride_n,
    weights_stride_h,
    weights_stride_w,
    weights_stride_p,
    windows_stride_n,
    windows_stride_c,
    windows_stride_h,
    windows_stride_w,
    windows_stride_y,
    windows_stride_x,
    KH: tl.constexpr,
    KW: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    """windows[p, i] = sum over o and taps t of grad[p shifted back by t, o] * weights[o, i, t], within one patch."""
    wh, ww = ph + (KH // 2) * 2 * dilation_h, pw + (KW // 2) * 2 * dilation_w
    tile = tl.program_id(0)
    part = tile % tl.cdiv(inputs, BLOCK_I)
    tile //= tl.cdiv(inputs, BLOCK_I)
    group, tile = tile % groups, tile // groups
    run, patch = tile % tl.cdiv(wh * ww, BLOCK_P), tile // tl.cdiv(wh * ww, BLOCK_P)
    n, top, left = (patch // (fh * fw)).to(tl.int64), patch // fw % fh, patch % fw
    o_p = run * BLOCK_P + tl.arange(0, BLOCK_P)
    o_i = part * BLOCK_I + tl.arange(0, BLOCK_I)
    m_p, m_i = o_p < wh * ww, o_i < inputs
    o_y, o_x = o_p // ww, o_p % ww

    grad = grad_ptr + n * grad_stride_n + (top * ph).to(tl.int64) * grad_stride_h
    grad += (left * pw).to(tl.int64) * grad_stride_w
    weights = weights_ptr + n * weights_stride_n + top.to(tl.int64) * weights_stride_h
    weights += left.to(tl.int64) * weights_stride_w
    acc = _zeros(BLOCK_P, BLOCK_O, BLOCK_I, DOT)
    for tap in range(KH * KW):
        y, x = o_y - tap // KW * dilation_h, o_x - tap % KW * dilation_w
        m_grad = m_p & (y >= 0) & (y < ph) & (x >= 0) & (x < pw)
        pixels = grad + y.to(tl.int64) * grad_stride_h + x.to(tl.int64) * grad_stride_w
        for o in range(0, outputs, BLOCK_O):
            o_o = o + tl.arange(0, BLOCK_O)
            m_o = o_o < outputs
            o_o = (group * outputs + o_o).to(tl.int64)
            o_grad = (o_o * grad_stride_c)[None, :]
            b_grad = tl.load(pixels[:, None] + o_grad, mask=m_grad[:, None] & m_o[None, :], other=0.0)
            o_w = ((o_o[:, None] * inputs + o_i[None, :]) * (KH * KW) + tap) * weights_stride_p
            b_w = tl.load(weights + o_w, mask=m_o[:, None] & m_i[None, :], other=0.0)
            acc = _multiply(b_grad, b_w, acc, DOT, PRECISION)

    windows = windows_ptr + n * windows_stride_n + top.to(tl.int64) * windows_stride_h
    windows += left.to(tl.int64) * windows_stride_w
    pixels = windows + o_y.to(tl.int64) * windows_stride_y + o_x.to(tl.int64) * windows_stride_x
    out = pixels[:, None] + ((group * inputs + o_i).to(tl.int64) * windows_stride_c)[None, :]
    tl.store(out, _total(acc, DOT).to(windows_ptr.dtype.element_ty), mask=m_p[:, None] & m_i[None, :])


@triton.jit
def _patch_conv2d_bwd_x_kernel(
    windows_ptr,  # [N * C, fh, fw, ph + 2 * halo_h, pw + 2 * halo_w], float32, contiguous
    d_x_ptr,  # [N * C, H, W], contiguous
    values,  # N * C * H * W
    H,
    W,
    fh,
    fw,
    ph,
    pw,
    halo_h,
    halo_w,
    images_h,  # how often padding shows a pixel at most, itself included
    images_w,
    MODE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """d_x[c, y, x] = sum over the windows that show (y, x), and the places where they do, of windows[c, place]."""
    o = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m = o < values
    channel, y, x = o // W // H, (o // W % H).to(tl.int32), (o % W).to(tl.int32)
    wh, ww = ph + 2 * halo_h, pw + 2 * halo_w
    acc = tl.zeros((BLOCK,), tl.float32)
    for k_h in range(images_h):
        place_y, m_y = _image(y, k_h, halo_h, H, MODE)
        # The last window to show a row is its own patch's or, in the padding, one before; it begins ``halo_h`` above.
        last_h = (place_y + halo_h) // ph
        for k_w in range(images_w):
            place_x, m_x = _image(x, k_w, halo_w, W, MODE)
            last_w = (place_x + halo_w) // pw
            for back_h in range((wh + ph - 1) // ph):
                i = last_h - back_h
                row = place_y + halo_h - i * ph
                m_row = m & m_y & (i >= 0) & (i < fh) & (row < wh)
                for back_w in range((ww + pw - 1) // pw):
                    j = last_w - back_w
                    column = place_x + halo_w - j * pw
                    shown = m_row & m_x & (j >= 0) & (j < fw) & (column < ww)
                    window = (channel * fh + i) * fw + j
                    acc += tl.load(windows_ptr + (window * wh + row) * ww + column, mask=shown, other=0.0)
    tl.store(d_x_ptr + o, acc.to(d_x_ptr.dtype.element_ty), mask=m)


@triton.jit
def _patch_conv2d_bwd_weights_kernel(
    grad_ptr,  # [N, groups * outputs, H, W], any strides
    x_ptr,  # [N, groups * inputs, H, W], any strides
    d_weights_ptr,  # [N, fh, fw, groups * outputs, inputs, KH * KW], contiguous
    H,
    W,
    fh,
    fw,
    ph,
    pw,
    groups,
    inputs,
    outputs,
    dilation_h,
    dilation_w,
    grad_stride_n,
    grad_stride_c,
    grad_stride_h,
    grad_stride_w,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    KH: tl.constexpr,
    KW: tl.constexpr,
    MODE: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    """d_weights[o, i, t] = sum over the pixels p of the patch, in order, of grad[p, o] * x[p shifted by t, i]."""
    tile = tl.program_id(0)
    tap, tile = tile % (KH * KW), tile // (KH * KW)
    part_i, tile = tile % tl.cdiv(inputs, BLOCK_I), tile // tl.cdiv(inputs, BLOCK_I)
    part_o, tile = tile % tl.cdiv(outputs, BLOCK_O), tile // tl.cdiv(outputs, BLOCK_O)
    group, patch = tile % groups, tile // groups
    n, top, left = (patch // (fh * fw)).to(tl.int64), patch // fw % fh, patch % fw
    o_i = part_i * BLOCK_I + tl.arange(0, BLOCK_I)
    o_o = part_o * BLOCK_O + tl.arange(0, BLOCK_O)
    m_i, m_o = o_i < inputs, o_o < outputs
    output = (group * outputs + o_o).to(tl.int64)

    grad = grad_ptr + n * grad_stride_n + output * grad_stride_c
    channels = x_ptr + n * stride_n + (group * inputs + o_i).to(tl.int64) * stride_c
    acc = _zeros(BLOCK_O, BLOCK_P, BLOCK_I, DOT)
    for p in range(0, ph * pw, BLOCK_P):
        o_p = p + tl.arange(0, BLOCK_P)
        m_p = o_p < ph * pw
        o_y, o_x = top * ph + o_p // pw, left * pw + o_p % pw
        o_grad = o_y.to(tl.int64) * grad_stride_h + o_x.to(tl.int64) * grad_stride_w
        b_grad = tl.load(grad[:, None] + o_grad[None, :], mask=m_o[:, None] & m_p[None, :], other=0.0)
        y = _padded(o_y + (tap // KW - KH // 2) * dilation_h, H, MODE)
        x = _padded(o_x + (tap % KW - KW // 2) * dilation_w, W, MODE)
        m_x = m_p & (y >= 0) & (x >= 0)
        pixels = y.to(tl.int64) * stride_h + x.to(tl.int64) * stride_w
        b_x = tl.load(channels[None, :] + pixels[:, None], mask=m_x[:, None] & m_i[None, :], other=0.0)
        acc = _multiply(b_grad, b_x, acc, DOT, PRECISION)

    filters = (patch.to(tl.int64) * groups * outputs + output)[:, None] * inputs + o_i[None, :]
    out = d_weights_ptr + filters * (KH * KW) + tap
    tl.store(out, _total(acc, DOT).to(d_weights_ptr.dtype.element_ty), mask=m_o[:, None] & m_i[None, :])


def _check(x: Tensor, weights: Tensor) -> None:
    if x.dim() != 4 or weights.dim() != 4:
        raise ValueError(
            f"patch_conv2d: takes a map [N, C, H, W] and weights [N, fh, fw, P], got {list(x.shape)} and "
            f"{list(weights.shape)}"
        )
    if x.dtype not in DTYPES:
        raise TypeError(f"patch_conv2d: x must be float32, float16 or bfloat16 for Triton, got {x.dtype}")


def _options(kernel: str, x: Tensor, summed: str, **sizes: int) -> tuple[launch.Options, bool]:
    """Block sizes for so many pixels P, inputs I and outputs O, of which one is summed over; whether by ``tl.dot``."""
    dot = sizes["P"] >= 16 and min(sizes["I"], sizes["O"]) >= 8
    if dot:
        most = 32 if x.dtype == torch.float32 else 64  # in float32, larger ones use the stack on sm_80
        deep = 16 if x.dtype == torch.float32 and summed == "O" else 32  # the same, with Triton 3.6
        blocks = {name: block(size, most=deep if name == summed else most) for name, size in sizes.items()}
    else:
        blocks = {summed: block(sizes[summed], 1, 16)}
        room = MOST_PRODUCTS // blocks[summed]
        for name in [name for name in sizes if name != summed]:
            blocks[name] = block(sizes[name], 1, min(room, 64 if name == "O" else 32))
            room //= blocks[name]
    default = {f"BLOCK_{name}": size for name, size in blocks.items()} | {"num_warps": 4, "num_stages": 2}
    signature = {"pixels": sizes["P"], "inputs": sizes["I"], "outputs": sizes["O"]}
    return launch.options(kernel, x, default, **signature), dot


def _tiles(options: launch.Options, groups: int, **sizes: int) -> int:
    tiles = groups
    for name, size in sizes.items():
        tiles *= triton.cdiv(size, options[f"BLOCK_{name}"])
    return tiles


def patch_conv2d(
    x: Tensor,
    weights: Tensor,
    bias: Tensor | None,
    out_channels: int,
    kernel_size: list[int],
    groups: int,
    dilation: list[int],
    padding_mode: str,
) -> Tensor:
    """Each pixel convolved with the weights of its patch: [N, out_channels, H, W], in the memory format of x.

    Args:
        x: [N, C, H, W] in float32, float16 or bfloat16, with any strides.
        weights: [N, fh, fw, P], with any strides: P is [out_channels, C / groups, kernel height, kernel width], flat.
        bias: [out_channels], or None.
    """
    _check(x, weights)
    n, channels, height, width = x.shape
    fh, fw = weights.shape[1:3]
    ph, pw = height // fh, width // fw
    out = output_map(x, out_channels)
    if out.numel() == 0:
        return out
    sizes = {"P": ph * pw, "I": channels // groups, "O": out_channels // groups}
    options, dot = _options("patch_conv2d_fwd", x, "I", **sizes)
    tiles = _tiles(options, groups, P=sizes["P"], O=sizes["O"])
    with torch.cuda.device_of(x):
        _patch_conv2d_fwd_kernel[(n * fh * fw * tiles,)](
            x,
            weights,
            x if bias is None else bias,
            out,
            height,
            width,
            fh,
            fw,
            ph,
            pw,
            groups,
            sizes["I"],
            sizes["O"],
            *dilation,
            *x.stride(),
            *weights.stride(),
            0 if bias is None else bias.stride(0),
            *out.stride(),
            KH=kernel_size[0],
            KW=kernel_size[1],
            MODE=padding_mode,
            BIAS=bias is not None,
            DOT=dot,
            PRECISION=precision(x.dtype),
            enable_fp_fusion=True,
            **options,
        )
    return out


def patch_conv2d_backward(
    grad: Tensor,
    x: Tensor,
    weights: Tensor,
    bias: Tensor | None,
    out_channels: int,
    kernel_size: list[int],
    groups: int,
    dilation: list[int],
    padding_mode: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weights and bias (empty without one), contiguous; sums are taken in a fixed order.

    Args:
        grad: [N, out_channels, H, W], with any strides; the rest as in :func:`patch_conv2d`.
    """
    _check(x, weights)
    d_x, d_weights = x.new_empty(x.shape), weights.new_empty(weights.shape)
    if x.numel():
        _differentiate_x(grad, weights, d_x, kernel_size, groups, dilation, padding_mode)
        _differentiate_weights(grad, x, d_weights, kernel_size, groups, dilation, padding_mode)
    d_bias = x.new_empty(0) if bias is None else grad.sum((0, 2, 3), dtype=torch.float32).to(bias.dtype)
    return d_x, d_weights, d_bias


def _differentiate_x(
    grad: Tensor,
    weights: Tensor,
    d_x: Tensor,
    kernel_size: list[int],
    groups: int,
    dilation: list[int],
    padding_mode: str,
) -> None:
    n, channels, height, width = d_x.shape
    fh, fw = weights.shape[1:3]
    ph, pw = height // fh, width // fw
    halo = [step * (size // 2) for step, size in zip(dilation, kernel_size, strict=True)]
    wh, ww = ph + 2 * halo[0], pw + 2 * halo[1]
    if halo == [0, 0]:
        windows = d_x.view(n, channels, fh, ph, fw, pw).permute(0, 1, 2, 4, 3, 5)
    else:
        windows = d_x.new_empty((n, channels, fh, fw, wh, ww), dtype=torch.float32)
    sizes = {"P": wh * ww, "I": channels // groups, "O": grad.shape[1] // groups}
    options, dot = _options("patch_conv2d_bwd_windows", d_x, "O", **sizes)
    tiles = _tiles(options, groups, P=sizes["P"], I=sizes["I"])
    with torch.cuda.device_of(d_x):
        _patch_conv2d_bwd_windows_kernel[(n * fh * fw * tiles,)](
            grad,
            weights,
            windows,
            fh,
            fw,
            ph,
            pw,
            groups,
            sizes["I"],
            sizes["O"],
            *dilation,
            *grad.stride(),
            *weights.stride(),
            *windows.stride(),
            KH=kernel_size[0],
            KW=kernel_size[1],
            DOT=dot,
            PRECISION=precision(d_x.dtype),
            enable_fp_fusion=True,
            **options,
        )
        if halo == [0, 0]:
            return
        _patch_conv2d_bwd_x_kernel[(triton.cdiv(d_x.numel(), SUM_BLOCK),)](
            windows,
            d_x,
            d_x.numel(),
            height,
            width,
            fh,
            fw,
            ph,
            pw,
            *halo,
            *[_images(size, padding_mode) for size in halo],
            MODE=padding_mode,
            BLOCK=SUM_BLOCK,
            num_warps=4,
            enable_fp_fusion=True,
        )


def _images(halo: int, padding_mode: str) -> int:
    """How often a padded axis shows a pixel at most."""
    if halo == 0:
        return 1
    return {"zeros": 1, "replicate": 1 + 2 * halo}.get(padding_mode, 3)


def _differentiate_weights(
    grad: Tensor,
    x: Tensor,
    d_weights: Tensor,
    kernel_size: list[int],
    groups: int,
    dilation: list[int],
    padding_mode: str,
) -> None:
    n, channels, height, width = x.shape
    fh, fw = d_weights.shape[1:3]
    ph, pw = height // fh, width // fw
    sizes = {"P": ph * pw, "I": channels // groups, "O": grad.shape[1] // groups}
    options, dot = _options("patch_conv2d_bwd_weights", x, "P", **sizes)
    tiles = _tiles(options, groups * kernel_size[0] * kernel_size[1], I=sizes["I"], O=sizes["O"])
    with torch.cuda.device_of(x):
        _patch_conv2d_bwd_weights_kernel[(n * fh * fw * tiles,)](
            grad,
            x,
            d_weights,
            height,
            width,
            fh,
            fw,
            ph,
            pw,
            groups,
            sizes["I"],
            sizes["O"],
            *dilation,
            *grad.stride(),
            *x.stride(),
            KH=kernel_size[0],
            KW=kernel_size[1],
            MODE=padding_mode,
            DOT=dot,
            PRECISION=precision(x.dtype),
            enable_fp_fusion=True,
            **options,
        )
