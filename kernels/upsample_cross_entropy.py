"""``upsample_cross_entropy`` in Triton: the training loss at label size, without full-size logits or their gradient.

A label that is neither a class nor the ignored one makes the loss NaN, and the gradient of the logits that it samples;
so does a class weight that is no finite number of at least 0. A check would synchronise with the device.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyperseg.kernels import launch
from hyperseg.kernels.language import corners, first_reader, load_logits, readers, share_of
from hyperseg.kernels.launch import DTYPES, cdiv


class Sizes(NamedTuple):
    classes: int
    h: int  # of the logits
    w: int
    height: int  # of the labels
    width: int
    scale_h: float  # h / height
    scale_w: float


@triton.jit
def _block_of_labels(sizes, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr):
    """Return the labels of a program: (image, rows, columns, mask)."""
    across, down = tl.cdiv(sizes.width, BLOCK_W), tl.cdiv(sizes.height, BLOCK_H)
    tile = tl.program_id(0)
    n = (tile // (across * down)).to(tl.int64)
    o_y = tile // across % down * BLOCK_H + tl.arange(0, BLOCK_H)
    o_x = tile % across * BLOCK_W + tl.arange(0, BLOCK_W)
    return n, o_y, o_x, (o_y < sizes.height)[:, None] & (o_x < sizes.width)[None, :]


@triton.jit
def _label_offset(n, y, x, strides):
    """Return the offset of labels or weights [N, height, width]."""
    return n * strides[0] + y * strides[1] + x * strides[2]


@triton.jit
def _reduce_classes(
    plane,  # of the first class
    label,  # [BLOCK_H, BLOCK_W]
    o_y,
    o_x,
    m,
    sizes,
    strides,
    COPY: tl.constexpr,
):
    """Reduce the scores of some pixels: (maximum, log of the sum of exp(score - maximum), the label's score)."""
    row0, row1, col0, col1, w_y, w_x = corners(o_y, o_x, sizes.h, sizes.w, sizes.scale_h, sizes.scale_w, strides)
    maximum = tl.full(label.shape, float("-inf"), tl.float32)
    total = tl.zeros(label.shape, tl.float32)
    score = tl.full(label.shape, float("nan"), tl.float32)  # until the label's class comes
    for c in range(sizes.classes):
        value = load_logits(plane, row0, row1, col0, col1, w_y, w_x, m, COPY)
        # One exponential per class, of the smaller of the two; the difference of two equal infinities is 0.
        step = tl.where(value == maximum, 1.0, tl.exp(-tl.abs(value - maximum)))
        total = tl.where(value > maximum, total * step + 1.0, total + step)
        maximum = tl.maximum(maximum, value)
        score = tl.where(label == c, value, score)
        plane += strides[1]
    return maximum, tl.log(total), score


@triton.jit
def _upsample_cross_entropy_fwd_kernel(
    logits_ptr,  # [N, C, h, w], any strides
    labels_ptr,  # [N, height, width], int64 or uint8, any strides
    of_class_ptr,  # [C], float32: the class weights; unused unless WEIGHTED
    losses_ptr,  # [N, height, width], float32, contiguous
    weights_ptr,  # [N, height, width], float32, contiguous
    sizes,
    ignore_index,
    strides,
    labels_strides,
    of_class_stride,
    WEIGHTED: tl.constexpr,
    COPY: tl.constexpr,  # the map keeps its size
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """weights[n, y, x] = of_class[label], or 1; losses[n, y, x] = weights[n, y, x] * (log(sum over c of exp(score[c]))
    - score[label]), scores sampled at (y, x); both are 0 where ignored, NaN where the label is no class."""
    n, o_y, o_x, m = _block_of_labels(sizes, BLOCK_H, BLOCK_W)
    rows, columns = o_y.to(tl.int64)[:, None], o_x.to(tl.int64)[None, :]
    label = tl.load(labels_ptr + _label_offset(n, rows, columns, labels_strides), mask=m, other=0).to(tl.int64)
    plane = logits_ptr + n * strides[0]
    maximum, logarithm, score = _reduce_classes(plane, label, o_y, o_x, m, sizes, strides, COPY)
    ignored = label == ignore_index
    known = (label >= 0) & (label < sizes.classes)
    weight = tl.where(known, 1.0, float("nan"))
    if WEIGHTED:
        weight = tl.load(of_class_ptr + label * of_class_stride, mask=m & known, other=float("nan"))
        weight = tl.where((weight >= 0.0) & (weight < float("inf")), weight, float("nan"))
    o = (n * sizes.height + rows) * sizes.width + columns
    tl.store(weights_ptr + o, tl.where(ignored, 0.0, weight), mask=m)
    tl.store(losses_ptr + o, tl.where(ignored, 0.0, weight * (logarithm + (maximum - score))), mask=m)


@triton.jit
def _upsample_cross_entropy_bwd_sums_kernel(
    logits_ptr,  # [N, C, h, w], any strides
    weights_ptr,  # [N, height, width], float32, any strides
    sums_ptr,  # [N, height, width], float32, contiguous
    sizes,
    strides,
    weights_strides,
    COPY: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """sums[n, y, x] = log(sum over c of exp(score[c])); logits are read only for pixels that count."""
    n, o_y, o_x, m = _block_of_labels(sizes, BLOCK_H, BLOCK_W)
    rows, columns = o_y.to(tl.int64)[:, None], o_x.to(tl.int64)[None, :]
    weight = tl.load(weights_ptr + _label_offset(n, rows, columns, weights_strides), mask=m, other=0.0)
    counted = weight != 0.0
    label = tl.zeros((BLOCK_H, BLOCK_W), tl.int32)
    plane = logits_ptr + n * strides[0]
    maximum, logarithm, _ = _reduce_classes(plane, label, o_y, o_x, counted, sizes, strides, COPY)
    tl.store(sums_ptr + (n * sizes.height + rows) * sizes.width + columns, maximum + logarithm, mask=m)


@triton.jit
def _upsample_cross_entropy_bwd_logits_kernel(
    grad_ptr,  # [], float32
    logits_ptr,  # [N, C, h, w], any strides
    labels_ptr,  # [N, height, width], int64 or uint8, any strides
    weights_ptr,  # [N, height, width], float32, any strides
    sums_ptr,  # as above
    d_logits_ptr,  # [N, C, h, w], contiguous
    pixels,  # N * h * w
    sizes,
    most_readers,  # upper bounds on the rows and columns of labels that sample one of logits
    strides,
    labels_strides,
    weights_strides,
    COPY: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK: tl.constexpr,  # pixels of the logits, counted through all images
):
    """d_logits[n, c, i, j] = grad * sum over the pixels (y, x) that sample (i, j), in order, of
    weights[y, x] * share(i, y) * share(j, x) * (exp(score[c, y, x] - sums[y, x]) - (1 if c is the label else 0))."""
    C, h, w, height, width, scale_h, scale_w = sizes
    parts = tl.cdiv(C, BLOCK_C)
    o_c = tl.program_id(0) % parts * BLOCK_C + tl.arange(0, BLOCK_C)
    o = tl.program_id(0) // parts * BLOCK + tl.arange(0, BLOCK)
    m_c, m_o = o_c < C, o < pixels
    n, i, j = (o // (h * w)).to(tl.int64), o // w % h, o % w

    plane = logits_ptr + (n * strides[0])[None, :] + (o_c.to(tl.int64) * strides[1])[:, None]
    top, left = first_reader(i, scale_h, h), first_reader(j, scale_w, w)
    acc = tl.zeros((BLOCK_C, BLOCK), tl.float32)
    for step_h in range(most_readers[0]):
        y = top + step_h
        share_y, y0, y1, w_y = share_of(i, y, scale_h, h)
        m_y = m_o & (y < height) & (share_y != 0.0)
        row0, row1 = (y0.to(tl.int64) * strides[2])[None, :], (y1.to(tl.int64) * strides[2])[None, :]
        w_y = w_y[None, :]
        y = y.to(tl.int64)
        row_weight = weights_ptr + n * weights_strides[0] + y * weights_strides[1]
        row_label = labels_ptr + n * labels_strides[0] + y * labels_strides[1]
        row_sum = sums_ptr + (n * height + y) * width
        for step_w in range(most_readers[1]):
            x = left + step_w
            share_x, x0, x1, w_x = share_of(j, x, scale_w, w)
            m = m_y & (x < width) & (share_x != 0.0)
            x = x.to(tl.int64)
            weight = tl.load(row_weight + x * weights_strides[2], mask=m, other=0.0)
            m = m & (weight != 0.0)  # few pixels of a bootstrapped loss
            label = tl.load(row_label + x * labels_strides[2], mask=m, other=0).to(tl.int64)
            b_sum = tl.load(row_sum + x, mask=m, other=0.0)
            weight = tl.where((label < 0) | (label >= C), float("nan"), weight) * (share_y * share_x)
            col0, col1 = (x0.to(tl.int64) * strides[3])[None, :], (x1.to(tl.int64) * strides[3])[None, :]
            value = load_logits(plane, row0, row1, col0, col1, w_y, w_x[None, :], m[None, :] & m_c[:, None], COPY)
            excess = tl.exp(value - b_sum[None, :]) - tl.where(label[None, :] == o_c[:, None], 1.0, 0.0)
            acc += tl.where(m[None, :], weight[None, :] * excess, 0.0)

    acc *= tl.load(grad_ptr)
    out = d_logits_ptr + (n[None, :] * C + o_c[:, None]) * (h * w) + (o % (h * w))[None, :]
    tl.store(out, acc.to(d_logits_ptr.dtype.element_ty), mask=m_c[:, None] & m_o[None, :])


def _check(logits: Tensor, labels: Tensor) -> None:
    fits = logits.dim() == 4 and labels.dim() == 3 and labels.shape[0] == logits.shape[0]
    if not fits or labels.dtype not in (torch.int64, torch.uint8):
        raise ValueError(
            "upsample_cross_entropy: expected logits [N, C, h, w] and labels int64 or uint8 [N, H, W], "
            f"got {list(logits.shape)} and {labels.dtype} {list(labels.shape)}"
        )
    if 0 in logits.shape or 0 in labels.shape:
        raise ValueError(
            f"upsample_cross_entropy: logits {list(logits.shape)} or labels {list(labels.shape)} are empty"
        )
    if logits.dtype not in DTYPES:
        raise TypeError(
            f"upsample_cross_entropy: logits must be float32, float16 or bfloat16 for Triton, got {logits.dtype}"
        )


def _sizes(logits: Tensor, labels: Tensor) -> Sizes:
    _, classes, h, w = logits.shape
    height, width = labels.shape[1:]
    return Sizes(classes, h, w, height, width, h / height, w / width)


def _pixel_options(kernel: str, logits: Tensor) -> launch.Options:
    # One pixel per thread, as in upsample_argmax.
    default = {"BLOCK_H": 8, "BLOCK_W": 32, "num_warps": 8, "num_stages": 1}
    return launch.options(kernel, logits, default, classes=logits.shape[1])


def _pixel_grid(labels: Tensor, options: launch.Options) -> tuple[int]:
    n, height, width = labels.shape
    return (n * cdiv(height, options["BLOCK_H"]) * cdiv(width, options["BLOCK_W"]),)


def upsample_cross_entropy(
    logits: Tensor, labels: Tensor, weight: Tensor | None, ignore_index: int, bootstrap: int, threshold: float
) -> tuple[Tensor, Tensor]:
    """Return the loss and the weight of each pixel in it, [N, height, width]; both float32.

    Args:
        logits: [N, C, h, w] in float32, float16 or bfloat16, with any strides.
        labels: int64 or uint8 [N, height, width], with any strides.
        weight: of each class, float32 [C], with any stride, or None.
        bootstrap: 0, or the least number of pixels per image that count; then all with a loss above ``threshold`` do.
    """
    _check(logits, labels)
    if weight is not None and (weight.dtype != torch.float32 or weight.shape != logits.shape[1:2]):
        raise ValueError(
            f"upsample_cross_entropy: weight must be float32 [{logits.shape[1]}], got {weight.dtype} "
            f"{list(weight.shape)}"
        )
    losses = logits.new_empty(labels.shape, dtype=torch.float32)
    weights = logits.new_empty(labels.shape, dtype=torch.float32)
    chosen = _pixel_options("upsample_cross_entropy_fwd", logits)
    with torch.cuda.device_of(logits):
        _upsample_cross_entropy_fwd_kernel[_pixel_grid(labels, chosen)](
            logits, labels, losses if weight is None else weight, losses, weights, _sizes(logits, labels), ignore_index,
            logits.stride(), labels.stride(), 1 if weight is None else weight.stride(0),
            WEIGHTED=weight is not None,
            COPY=logits.shape[2:] == labels.shape[1:],
            enable_fp_fusion=True,
            **chosen,
        )  # fmt: skip
    if bootstrap:
        shares = _bootstrapped(losses, bootstrap, threshold)
        return (losses * shares).sum(), weights * shares
    total = weights.sum(dtype=torch.float64)
    each = 1 / total.where(total != 0, 1.0)
    return (losses.sum(dtype=torch.float64) * each).float(), weights * each.float()


def _bootstrapped(losses: Tensor, bootstrap: int, threshold: float) -> Tensor:
    """Return the share of each pixel, ignored ones included; ranked by PyTorch without host synchronisation."""
    n, height, width = losses.shape
    losses = losses.view(n, -1)
    pixels = height * width
    k = min(bootstrap, pixels)
    worst = losses.topk(min(k + 1, pixels), dim=1).values
    many = worst[:, -1:] > threshold if pixels > k else torch.zeros_like(worst[:, :1], dtype=torch.bool)
    cut = torch.where(many, threshold, worst[:, k - 1 : k])
    above = (losses > cut).sum(1, keepdim=True).to(losses.dtype)
    ties = (losses == cut).sum(1, keepdim=True).to(losses.dtype)
    share_above = torch.where(many, 1 / above, 1 / k) / n
    share_at = torch.where(many, 0.0, (k - above) / (k * ties.clamp(min=1))) / n
    shares = torch.where(losses > cut, share_above, torch.where(losses == cut, share_at, 0.0))
    return shares.where(~losses.isnan(), torch.nan).view(n, height, width)


def upsample_cross_entropy_backward(grad: Tensor, logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Return the gradient of the logits, contiguous: each gathers from the pixels that sample it, in a fixed order.

    Args:
        grad: of the loss, float32.
        weights: as the forward pass returned them, with any strides.
    """
    _check(logits, labels)
    (n, classes, h, w), (height, width) = logits.shape, labels.shape[1:]
    sizes = _sizes(logits, labels)
    copy = (h, w) == (height, width)
    most_readers = (1, 1) if copy else (readers(h, height), readers(w, width))
    sums = logits.new_empty(labels.shape, dtype=torch.float32)
    d_logits = logits.new_empty(logits.shape)
    chosen = _pixel_options("upsample_cross_entropy_bwd_sums", logits)
    with torch.cuda.device_of(logits):
        _upsample_cross_entropy_bwd_sums_kernel[_pixel_grid(labels, chosen)](
            logits, weights, sums, sizes, logits.stride(), weights.stride(),
            COPY=copy,
            enable_fp_fusion=True,
            **chosen,
        )  # fmt: skip
        default = {"BLOCK_C": 4, "BLOCK": 128, "num_warps": 8, "num_stages": 1}
        chosen = launch.options("upsample_cross_entropy_bwd_logits", logits, default, classes=classes)
        tiles = cdiv(classes, chosen["BLOCK_C"]) * cdiv(n * h * w, chosen["BLOCK"])
        _upsample_cross_entropy_bwd_logits_kernel[(tiles,)](
            grad, logits, labels, weights, sums, d_logits, n * h * w, sizes, most_readers,
            logits.stride(), labels.stride(), weights.stride(),
            COPY=copy,
            enable_fp_fusion=True,
            **chosen,
        )  # fmt: skip
    return d_logits
