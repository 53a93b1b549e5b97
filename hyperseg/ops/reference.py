"""The operators in plain PyTorch. These functions define what every other backend must compute.

Conventions: maps are ``[N, C, H, W]``. The image is cut into a grid of ``fh x fw`` patches of ``ph x pw`` pixels
(``H = fh * ph``). Generated weights are patch-major, ``[N, fh, fw, P]``: one flat parameter vector per patch.
These functions do not validate their arguments (``hyperseg.ops`` does); all are differentiable by autograd.
Source: SPEC.md sections E, F, G and A.3.
"""

import functools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hyperseg._distributed import differentiable_all_reduce
from hyperseg.ops._chain import block_by_block
from hyperseg.ops._layout import level_input, level_parameters, memory_format, resize_logits

# ---------------------------------------------------------------------------------------------------------------------
# Patches


def to_patches(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """``[N, C, H, W]`` -> one small map per patch, ``[N * fh * fw, C, ph, pw]``."""
    n, c, h, w = x.shape
    fh, fw = grid
    x = x.reshape(n, c, fh, h // fh, fw, w // fw)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(n * fh * fw, c, h // fh, w // fw)


def from_patches(patches: Tensor, n: int, grid: tuple[int, int]) -> Tensor:
    """The inverse of :func:`to_patches`."""
    fh, fw = grid
    _, c, ph, pw = patches.shape
    x = patches.reshape(n, fh, fw, c, ph, pw).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(n, c, fh * ph, fw * pw)


def to_windows(x: Tensor, grid: tuple[int, int], halo: tuple[int, int], padding_mode: str = "reflect") -> Tensor:
    """Patches with ``halo`` neighbouring pixels on each side, ``[N * fh * fw, C, ph + 2*hh, pw + 2*hw]``."""
    n, c, h, w = x.shape
    fh, fw = grid
    ph, pw = h // fh, w // fw
    hh, hw = halo
    if hh or hw:
        mode = "constant" if padding_mode == "zeros" else padding_mode
        x = F.pad(x, (hw, hw, hh, hh), mode=mode)
    windows = x.unfold(2, ph + 2 * hh, ph).unfold(3, pw + 2 * hw, pw)
    return windows.permute(0, 2, 3, 1, 4, 5).reshape(n * fh * fw, c, ph + 2 * hh, pw + 2 * hw)


def pointwise(patches: Tensor, weight: Tensor) -> Tensor:
    """A 1x1 convolution with the weights of each patch: ``[B, I, h, w]`` x ``[B, O, I]`` -> ``[B, O, h, w]``."""
    b, _, h, w = patches.shape
    return torch.bmm(weight, patches.flatten(2)).reshape(b, -1, h, w)


def depthwise3x3(windows: Tensor, weight: Tensor) -> Tensor:
    """Depthwise, unpadded, with the weights of each patch: ``[B, C, h+2, w+2]`` x ``[B, C, 9]`` -> ``[B, C, h, w]``."""
    b, c, h, w = windows.shape
    out = F.conv2d(windows.reshape(1, b * c, h, w), weight.reshape(b * c, 1, 3, 3), groups=b * c)
    return out.reshape(b, c, h - 2, w - 2)


def follow_format(out: Tensor, like: Tensor) -> Tensor:
    """``out`` in channels-last memory if ``like`` is in channels-last memory, else contiguous."""
    return out.contiguous(memory_format=memory_format(like))


# ---------------------------------------------------------------------------------------------------------------------
# Weight generation and the dynamic convolutions


def generate_weights(
    signal: Tensor, generators: list[Tensor], offsets: list[int], groups: list[int], sizes: list[int]
) -> Tensor:
    """Grouped 1x1 convolutions of channel ranges of the signal, concatenated (SPEC D.5, E)."""
    parts = []
    for generator, offset, group, size in zip(generators, offsets, groups, sizes, strict=True):
        channels = generator.shape[1] * group
        if surplus := generator.shape[0] - size:
            generator = F.pad(generator[:size], (0, 0, 0, surplus))  # so that NaN there has no influence
        part = F.conv2d(signal[:, offset : offset + channels], generator[:, :, None, None], groups=group)
        parts.append(part[:, :size])
    return torch.cat(parts, 1).permute(0, 2, 3, 1).contiguous()


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
    """Convolve each window of the padded map with the weights of its patch (SPEC G, generic patch convolution)."""
    n, fh, fw, _ = weights.shape
    halo = (dilation[0] * (kernel_size[0] // 2), dilation[1] * (kernel_size[1] // 2))
    windows = to_windows(x, (fh, fw), halo, padding_mode)
    b, c, h, w = windows.shape
    out = F.conv2d(
        windows.reshape(1, b * c, h, w),
        weights.reshape(b * out_channels, c // groups, *kernel_size),
        dilation=dilation,
        groups=b * groups,
    ).reshape(b, out_channels, h - 2 * halo[0], w - 2 * halo[1])
    out = from_patches(out, n, (fh, fw))
    return follow_format(out if bias is None else out + bias[:, None, None], x)


def split_inverted_residual(weights: Tensor, channels: int, hidden: int, out_channels: int) -> tuple[Tensor, ...]:
    """The expand ``[B, h, I]``, depthwise ``[B, h, 9]`` and project ``[B, O, h]`` weights of each patch (SPEC E)."""
    flat = weights.reshape(-1, weights.shape[-1])
    w1, w2, w3 = flat.split([channels * hidden, 9 * hidden, hidden * out_channels], 1)
    return (
        w1.reshape(-1, hidden, channels),
        w2.reshape(-1, hidden, 9),
        w3.reshape(-1, out_channels, hidden),
    )


def _identity(z: Tensor) -> Tensor:
    return z


def inverted_residual(
    x: Tensor,
    weights: Tensor,
    hidden: int,
    out_channels: int,
    halo: str,
    norms: Sequence[Callable[[Tensor], Tensor]],
) -> Tensor:
    """Expand, depthwise 3x3, project with the weights of each patch (SPEC G); one of ``norms`` after each step.

    ``halo="own"`` (v1_0, unify): a patch recomputes the hidden values of its halo from the true pixels there, with its
    own expand weights. ``halo="neighbour"`` (v0_1): it takes them from its neighbours' hidden maps.
    """
    n, fh, fw, _ = weights.shape
    grid = (fh, fw)
    w1, w2, w3 = split_inverted_residual(weights, x.shape[1], hidden, out_channels)
    norm1, norm2, norm3 = norms
    if halo == "own":
        a = F.relu6(norm1(pointwise(to_windows(x, grid, (1, 1)), w1)))
    else:
        full = from_patches(pointwise(to_patches(x, grid), w1), n, grid)
        a = to_windows(F.relu6(norm1(full)), grid, (1, 1))
    c = F.relu6(norm2(depthwise3x3(a, w2)))
    y = norm3(pointwise(c, w3))
    return follow_format(from_patches(y, n, grid), x)


def patch_inverted_residual(
    x: Tensor, weights: Tensor, bias: Tensor | None, hidden: int, out_channels: int, halo: str
) -> Tensor:
    """With folded norms: their scales are in the weights, their shifts in ``bias`` (expand | depthwise | project)."""
    if bias is None:
        return inverted_residual(x, weights, hidden, out_channels, halo, [_identity] * 3)
    shifts = bias.to(x.dtype)[:, None, None].split([hidden, hidden, out_channels])
    norms = [functools.partial(torch.add, shift) for shift in shifts]
    return inverted_residual(x, weights, hidden, out_channels, halo, norms)


def statistics_of_group(mean: Tensor, variance: Tensor, count: int, group: str) -> tuple[Tensor, Tensor]:
    """Mean and biased variance ``[C]`` over all processes of a group, from those of ``count`` values of each.

    By the sums of values and of squares in float64.
    """
    precise = mean.double()
    moments = torch.cat([precise, variance.double() + precise.square(), precise.new_ones(1)])
    sums = differentiable_all_reduce(moments * count, group)
    first, second = (sums[:-1] / sums[-1]).chunk(2)
    return first.to(mean.dtype), (second - first.square()).clamp(min=0).to(mean.dtype)


def patch_inverted_residual_batch_norm(
    x: Tensor,
    weights: Tensor,
    scale: Tensor,
    shift: Tensor,
    hidden: int,
    out_channels: int,
    halo: str,
    eps: float,
    group: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """With batch norms: return ``(y, mean, biased variance)``, the statistics concatenated like ``scale``.

    With ``halo="own"`` the first norm counts the halo pixels of every patch, as often as they occur (SPEC G). The
    statistics are of the values of all processes in ``group``, the name of a process group; ``""``: of this one.
    """
    widths = [hidden, hidden, out_channels]
    means, variances = [], []

    def batch_norm(z, gamma, beta):
        z32 = z.to(gamma.dtype)
        mean = z32.mean((0, 2, 3))
        var = z32.var((0, 2, 3), unbiased=False)
        if group:
            mean, var = statistics_of_group(mean, var, z32.numel() // z32.shape[1], group)
        means.append(mean)
        variances.append(var)
        factor = gamma * (var + eps).rsqrt()
        return (z32 * factor[:, None, None] + (beta - mean * factor)[:, None, None]).to(z.dtype)

    norms = [
        lambda z, g=g, b=b: batch_norm(z, g, b) for g, b in zip(scale.split(widths), shift.split(widths), strict=True)
    ]
    y = inverted_residual(x, weights, hidden, out_channels, halo, norms)
    return y, torch.cat(means), torch.cat(variances)


# ---------------------------------------------------------------------------------------------------------------------
# A decoder level


def level_operands(
    skip: Tensor,
    previous: Tensor | None,
    signal: Tensor | None,
    generator: Tensor | None,
    weights: Tensor | None,
    offset: int,
    groups: int,
    out_channels: int,
    hidden: int,
) -> tuple[Tensor, Tensor]:
    """Return a level's input, and its weights ``[N, fh, fw, P]``: those given, or generated from the signal."""
    x = level_input(skip, previous)
    if weights is None:
        assert signal is not None
        assert generator is not None
        size = level_parameters(x.shape[1], hidden, out_channels)
        weights = generate_weights(signal, [generator], [offset], [groups], [size])
    return x, weights


def decoder_level(
    skip: Tensor,
    previous: Tensor | None,
    signal: Tensor | None,
    generator: Tensor | None,
    weights: Tensor | None,
    bias: Tensor,
    offset: int,
    groups: int,
    out_channels: int,
    hidden: int,
    halo: str,
) -> Tensor:
    """Upsample, concatenate, coordinates, block, folded norms; weights generated from the signal, or given."""
    x, weights = level_operands(skip, previous, signal, generator, weights, offset, groups, out_channels, hidden)
    if hidden:
        y = patch_inverted_residual(x, weights, bias, hidden, out_channels, halo)
    else:
        n, fh, fw, _ = weights.shape
        weights = weights.reshape(-1, out_channels, x.shape[1])
        y = from_patches(pointwise(to_patches(x, (fh, fw)), weights), n, (fh, fw))
        y = F.relu(y + bias.to(y.dtype)[:, None, None])
    return follow_format(y, skip)


# ---------------------------------------------------------------------------------------------------------------------
# The encoder


def _strided_conv2d(x: Tensor, weight: Tensor, bias: Tensor, stride: int, groups: int = 1) -> Tensor:
    """``F.conv2d`` without padding.

    On CPUs with AMX, oneDNN's bfloat16 kernels return uninitialised values if the stride is 2 and the output one column
    wide (PyTorch 2.15). There a second column is computed and dropped.
    """
    one_column = (x.shape[3] - weight.shape[3]) // stride == 0
    if one_column and stride > 1 and x.dtype == torch.bfloat16 and x.device.type == "cpu":
        return F.conv2d(F.pad(x, (0, stride)), weight, bias, stride, groups=groups)[..., :1]
    return F.conv2d(x, weight, bias, stride, groups=groups)


def normalise_frames(frames: Tensor, scale: Tensor, shift: Tensor, like: Tensor, height: int, width: int) -> Tensor:
    """uint8 ``[N, H, W, 3]`` -> normalised ``[N, 3, height, width]``, the last row and column repeated (SPEC C.3)."""
    images = torch.addcmul(shift, frames.to(scale.dtype), scale).to(like.dtype).permute(0, 3, 1, 2)
    images = F.pad(images, (0, width - images.shape[3], 0, height - images.shape[2]), mode="replicate")
    return images.contiguous(memory_format=torch.channels_last)


def stem(
    frames: Tensor,
    scale: Tensor,
    shift: Tensor,
    weight: Tensor,
    bias: Tensor,
    height: int,
    width: int,
    stride: int,
    padding: list[int],
) -> Tensor:
    """uint8 ``[N, H, W, 3]`` -> EfficientNet's first map, norm folded, in channels-last memory (SPEC B.1, C.3)."""
    images = normalise_frames(frames, scale, shift, weight, height, width)
    y = F.silu(_strided_conv2d(F.pad(images, padding), weight, bias, stride))
    return y.contiguous(memory_format=torch.channels_last)


def mbconv(
    x: Tensor,
    expand: Tensor | None,
    expand_bias: Tensor | None,
    depthwise: Tensor,
    depthwise_bias: Tensor,
    reduce: Tensor,
    reduce_bias: Tensor,
    gate: Tensor,
    gate_bias: Tensor,
    project: Tensor,
    project_bias: Tensor,
    stride: int,
    padding: list[int],
    residual: bool,
) -> Tensor:
    """EfficientNet's block with folded norms: expand, depthwise, squeeze-and-excite, project (SPEC B.1)."""
    y = x if expand is None else F.silu(F.conv2d(x, expand[:, :, None, None], expand_bias))
    y = _strided_conv2d(F.pad(y, padding), depthwise[:, None], depthwise_bias, stride, groups=depthwise.shape[0])
    y = F.silu(y)
    squeezed = F.silu(F.conv2d(y.mean((2, 3), keepdim=True), reduce[:, :, None, None], reduce_bias))
    y = y * torch.sigmoid(F.conv2d(squeezed, gate[:, :, None, None], gate_bias))
    y = F.conv2d(y, project[:, :, None, None], project_bias)
    return follow_format(y + x if residual else y, x)


# Blocks one after another; see :func:`hyperseg.ops._chain.split_chain` for the arguments.
mbconv_chain = block_by_block(mbconv)


_ACTIVATIONS = {"none": lambda y: y, "relu": F.relu, "silu": F.silu}


def pointwise_conv(
    xs: list[Tensor], weights: list[Tensor], biases: list[Tensor], activations: list[str]
) -> list[Tensor]:
    """1x1 convolutions with bias and activation, in channels-last memory."""
    return [
        _ACTIVATIONS[activation](_conv1x1(x, weight, bias)).contiguous(memory_format=torch.channels_last)
        for x, weight, bias, activation in zip(xs, weights, biases, activations, strict=True)
    ]


def _conv1x1(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv2d(x, weight[:, :, None, None], bias)


def context_head(
    x: Tensor,
    reduce: Tensor | None,
    reduce_bias: Tensor | None,
    down: list[Tensor],
    down_biases: list[Tensor],
    up: list[Tensor],
    up_biases: list[Tensor],
) -> Tensor:
    """Signal of a head map: a pyramid of halved maps, its global average, and 1x1 convolutions back up (SPEC C)."""
    features = [x if reduce is None else F.relu(_conv1x1(x, reduce, reduce_bias))]
    for weight, bias in zip(down, down_biases, strict=True):
        height, width = features[-1].shape[2:]
        finer = F.pad(features[-1], (0, width % 2, 0, height % 2), mode="replicate")
        features.append(F.relu(_strided_conv2d(finer, weight, bias, 2)))
    context = features[-1].mean((2, 3), keepdim=True)
    used = features[:-1] if reduce is None else features[1:]
    for i in range(len(up) - 1, -1, -1):
        context = _double(context, like=used[i])
        context = _conv1x1(torch.cat([used[i], context], 1), up[i], up_biases[i])
        if i or reduce is not None:
            context = F.relu(context)
    if reduce is not None:
        context = torch.cat([features[0], _double(context, like=features[0])], 1)
    return context.contiguous(memory_format=torch.channels_last)


def _double(x: Tensor, like: Tensor) -> Tensor:
    """Double by nearest neighbour, cropped to the size of ``like``; a single pixel is repeated everywhere."""
    height, width = like.shape[2:]
    if x.shape[2:] == (1, 1):
        return x.expand(-1, -1, height, width)
    return F.interpolate(x, scale_factor=2, mode="nearest")[:, :, :height, :width]


# ---------------------------------------------------------------------------------------------------------------------
# Labels and loss


def resize_precisely(logits: Tensor, height: int, width: int) -> Tensor:
    """Resize in float32 at least: 16-bit floats would round close scores to equal ones."""
    return resize_logits(logits.to(torch.promote_types(logits.dtype, torch.float32)), height, width)


def upsample_argmax(logits: Tensor, height: int, width: int) -> Tensor:
    """The class of each full-size pixel, uint8; of equal scores the lowest class."""
    return resize_precisely(logits, height, width).argmax(1).to(torch.uint8)


def decoder_level_argmax(skip: Tensor, *args) -> Tensor:
    """The labels of a level, at the size of skip: arguments as of :func:`decoder_level`."""
    return upsample_argmax(decoder_level(skip, *args), *skip.shape[2:])


def pixel_losses(logits: Tensor, labels: Tensor, ignored: Tensor) -> Tensor:
    """Cross-entropy of each pixel of the label map, ``[N, H, W]``, at least float32; 0 where ``ignored``.

    It is NaN, and its gradient too, where the label is no class: an error would need a host synchronisation.
    """
    logits = resize_precisely(logits, *labels.shape[1:])
    wrong = _wrong(labels, logits.shape[1], ignored)
    targets = labels.long().masked_fill(wrong, 0).masked_fill(ignored, -1)
    losses = F.cross_entropy(logits, targets, ignore_index=-1, reduction="none")
    return losses * torch.ones_like(losses).masked_fill(wrong, torch.nan)


def weights_of_labels(labels: Tensor, weight: Tensor, ignored: Tensor) -> Tensor:
    """The class weight of each pixel of the label map; 0 where ``ignored``, NaN where it is no finite number >= 0."""
    wrong = _wrong(labels, len(weight), ignored)
    weight = weight.masked_fill(~((weight >= 0) & weight.isfinite()), torch.nan)
    of_label = weight[labels.long().masked_fill(ignored | wrong, 0)]
    return of_label.masked_fill(wrong, torch.nan).masked_fill(ignored, 0)


def _wrong(labels: Tensor, classes: int, ignored: Tensor) -> Tensor:
    """Where a label is neither ignored nor a class."""
    labels = labels.long()
    return ~ignored & ((labels < 0) | (labels >= classes))


def selection(losses: Tensor, bootstrap: int, threshold: float) -> Tensor:
    """The share of each pixel in the bootstrapped loss: ``[N, H, W]``, the sum of each image is ``1 / N``.

    Per image, the pixels with a loss above ``threshold`` if they are more than ``bootstrap``, else the ``bootstrap``
    pixels with the largest losses; pixels that tie at the cut divide the remaining share (SPEC A.3).
    """
    shape, losses = losses.shape, losses.flatten(1)
    n, pixels = losses.shape
    k = min(bootstrap, pixels)
    worst = losses.topk(min(k + 1, pixels), dim=1).values
    many = worst[:, -1:] > threshold if pixels > k else torch.zeros_like(worst[:, :1], dtype=torch.bool)
    cut = torch.where(many, threshold, worst[:, k - 1 : k])
    # In the dtype of the losses: a quotient of integers would be float32.
    above = (losses > cut).sum(1, keepdim=True).to(losses.dtype)
    ties = (losses == cut).sum(1, keepdim=True).to(losses.dtype)
    share_above = torch.where(many, 1 / above, 1 / k) / n
    share_at = torch.where(many, 0.0, (k - above) / (k * ties.clamp(min=1))) / n
    shares = torch.where(losses > cut, share_above, torch.where(losses == cut, share_at, 0.0))
    return shares.where(~losses.isnan(), torch.nan).view(shape)


def upsample_cross_entropy(
    logits: Tensor, labels: Tensor, weight: Tensor | None, ignore_index: int, bootstrap: int, threshold: float
) -> tuple[Tensor, Tensor]:
    """``(loss, weights)``: a weighted sum of the pixel losses, and the weight of each pixel, ``[N, H, W]``.

    Plain (``bootstrap = 0``): each pixel's class weight over their sum, as in ``F.cross_entropy``. Bootstrapped: each
    pixel's class weight times its share, where the losses are ranked and compared with ``threshold`` after they were
    multiplied by the class weights. A sum of 0 gives weights of 0.
    """
    ignored = labels.long() == ignore_index
    losses = pixel_losses(logits, labels, ignored)
    weights = weights_of_labels(labels, losses.new_ones(logits.shape[1]) if weight is None else weight, ignored)
    if bootstrap:
        weights = weights * selection(losses.detach() * weights, bootstrap, threshold)
    else:
        total = weights.sum()
        weights = weights / total.where(total != 0, 1.0)
    return (losses * weights).sum(), weights


def weighted_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """The loss for given weights: the function that ``upsample_cross_entropy_backward`` differentiates."""
    return (pixel_losses(logits, labels, weights == 0) * weights).sum()
