"""A second, slow implementation of the operators, patch by patch as in SPEC.md, to test the reference itself.

Every function takes the arguments of its operator. Nothing here is shared with ``hyperseg.ops``.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def generate_weights(signal, generators, offsets, groups, sizes):
    """Map each group's share of a generator's channels to its share of the rows; cut surplus rows (SPEC D.5)."""
    n, _, fh, fw = signal.shape
    out = signal.new_zeros(n, fh, fw, sum(sizes))
    for b in range(n):
        for i in range(fh):
            for j in range(fw):
                parameters = []
                for generator, offset, g, size in zip(generators, offsets, groups, sizes, strict=True):
                    rows, width = generator.shape
                    outputs = []
                    for q in range(g):
                        channels = signal[b, offset + q * width : offset + (q + 1) * width, i, j]
                        outputs.append(generator[q * rows // g : (q + 1) * rows // g] @ channels)
                    parameters.append(torch.cat(outputs)[:size])
                out[b, i, j] = torch.cat(parameters)
    return out


def windows(x: Tensor, weights: Tensor, halo: tuple[int, int], mode: str = "reflect"):
    """Yield ``(image, patch row, patch column, window [1, C, ph + 2*hh, pw + 2*hw])`` of every patch."""
    fh, fw = weights.shape[1:3]
    ph, pw = x.shape[2] // fh, x.shape[3] // fw
    hh, hw = halo
    if mode == "zeros":
        padded = F.pad(x, (hw, hw, hh, hh))
    else:
        padded = F.pad(x, (hw, hw, hh, hh), mode=mode) if hh or hw else x
    for b in range(x.shape[0]):
        for i in range(fh):
            for j in range(fw):
                rows = slice(i * ph, i * ph + ph + 2 * hh)
                columns = slice(j * pw, j * pw + pw + 2 * hw)
                yield b, i, j, padded[b : b + 1, :, rows, columns]


def tile(patches: dict, x: Tensor, weights: Tensor) -> Tensor:
    """Join patches to a map: ``{(image, row, column): [1, C, ph, pw]}`` -> ``[N, C, H, W]``."""
    fh, fw = weights.shape[1:3]
    images = []
    for b in range(x.shape[0]):
        rows = [torch.cat([patches[b, i, j] for j in range(fw)], 3) for i in range(fh)]
        images.append(torch.cat(rows, 2))
    return torch.cat(images)


def patch_conv2d(x, weights, bias, out_channels, kernel_size, groups, dilation, padding_mode):
    """Convolve each window without padding with its patch's own [out, in / groups, kh, kw] (SPEC G)."""
    kh, kw = kernel_size
    inputs = x.shape[1] // groups
    halo = (dilation[0] * (kh // 2), dilation[1] * (kw // 2))
    patches = {}
    for b, i, j, window in windows(x, weights, halo, padding_mode):
        flat = weights[b, i, j]
        kernel = torch.stack(
            [
                torch.stack([flat[(o * inputs + c) * kh * kw :][: kh * kw].reshape(kh, kw) for c in range(inputs)])
                for o in range(out_channels)
            ]
        )
        patches[b, i, j] = F.conv2d(window, kernel, bias, dilation=tuple(dilation), groups=groups)
    return tile(patches, x, weights)


def split(flat: Tensor, channels: int, hidden: int, out: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cut a patch's parameters into three kernels: indices c*in + i, c*9 + 3*ky + kx and o*h + c (SPEC E)."""
    start2 = channels * hidden
    start3 = start2 + 9 * hidden
    w1 = torch.stack([flat[c * channels : (c + 1) * channels] for c in range(hidden)])
    w2 = torch.stack([flat[start2 + 9 * c : start2 + 9 * c + 9].reshape(1, 3, 3) for c in range(hidden)])
    w3 = torch.stack([flat[start3 + o * hidden : start3 + (o + 1) * hidden] for o in range(out)])
    return w1[:, :, None, None], w2, w3[:, :, None, None]


def relu6(z: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(z, torch.zeros_like(z)), torch.full_like(z, 6))


def inverted_residual(x, weights, hidden, out_channels, halo, norms):
    """``norms``: three functions of a list of maps [1, C, *, *]. Their statistics are over the whole list."""
    kernels = {}
    for b, i, j, _ in windows(x, weights, (0, 0)):
        kernels[b, i, j] = split(weights[b, i, j], x.shape[1], hidden, out_channels)
    around = (1, 1) if halo == "own" else (0, 0)
    expanded = {(b, i, j): F.conv2d(w, kernels[b, i, j][0]) for b, i, j, w in windows(x, weights, around)}
    expanded = dict(zip(expanded, norms[0](list(expanded.values())), strict=True))
    expanded = {key: relu6(z) for key, z in expanded.items()}
    if halo == "neighbour":
        full = tile(expanded, x, weights)
        expanded = {(b, i, j): w for b, i, j, w in windows(full, weights, (1, 1))}
    filtered = {key: F.conv2d(z, kernels[key][1], groups=hidden) for key, z in expanded.items()}
    filtered = dict(zip(filtered, norms[1](list(filtered.values())), strict=True))
    projected = {key: F.conv2d(relu6(z), kernels[key][2]) for key, z in filtered.items()}
    projected = dict(zip(projected, norms[2](list(projected.values())), strict=True))
    return tile(projected, x, weights)


def patch_inverted_residual(x, weights, bias, hidden, out_channels, halo):
    bias = x.new_zeros(2 * hidden + out_channels) if bias is None else bias
    shifts = bias[:hidden], bias[hidden : 2 * hidden], bias[2 * hidden :]
    norms = [lambda maps, s=s: [z + s.reshape(1, -1, 1, 1) for z in maps] for s in shifts]
    return inverted_residual(x, weights, hidden, out_channels, halo, norms)


def patch_inverted_residual_batch_norm(x, weights, scale, shift, hidden, out_channels, halo, eps, group):
    """Apply ``F.batch_norm`` to the values of all patches; with halo "own" these include the halos of all windows."""
    assert group == "", "of one process"
    means, variances = [], []

    def norm(start, stop):
        def apply(maps):
            values = torch.cat([z[0].flatten(1) for z in maps], 1).T  # [population, C]
            means.append(values.mean(0))
            variances.append((values - values.mean(0)).square().mean(0))
            normed = F.batch_norm(
                values, None, None, scale[start:stop], shift[start:stop], training=True, momentum=0.0, eps=eps
            )
            parts = normed.split([z[0, 0].numel() for z in maps])
            return [p.T.reshape(z.shape) for p, z in zip(parts, maps, strict=True)]

        return apply

    norms = [norm(0, hidden), norm(hidden, 2 * hidden), norm(2 * hidden, 2 * hidden + out_channels)]
    y = inverted_residual(x, weights, hidden, out_channels, halo, norms)
    return y, torch.cat(means), torch.cat(variances)


def axis_weights(size: int, to: int) -> Tensor:
    """Return the matrix [to, size] of a linear interpolation between pixel centres (align_corners=False)."""
    matrix = torch.zeros(to, size, dtype=torch.float64)
    for o in range(to):
        source = max((o + 0.5) * size / to - 0.5, 0.0)
        low = min(math.floor(source), size - 1)
        high = min(low + 1, size - 1)
        matrix[o, low] += 1 - (source - low)
        matrix[o, high] += source - low
    return matrix


def resize(x: Tensor, height: int, width: int) -> Tensor:
    return axis_weights(x.shape[2], height) @ x @ axis_weights(x.shape[3], width).T


def coordinate(index: int, size: int) -> float:
    return -1.0 if size == 1 else -1.0 + 2.0 * index / (size - 1)


def decoder_level(skip, previous, signal, generator, weights, bias, offset, groups, out_channels, hidden, halo):
    """Concatenate x, y, skip and the upsampled previous map (SPEC F), then run the block with folded norms (SPEC G)."""
    n, _, h, w = skip.shape
    xy = [[[coordinate(x, w) for x in range(w)]] * h, [[coordinate(y, h)] * w for y in range(h)]]
    parts = [torch.tensor([xy], dtype=skip.dtype).repeat(n, 1, 1, 1), skip]
    if previous is not None:
        parts.append(resize(previous, h, w))
    x = torch.cat(parts, 1)
    if weights is None:
        channels = x.shape[1]
        count = channels * out_channels
        if hidden:
            count = channels * hidden + 9 * hidden + hidden * out_channels
        weights = generate_weights(signal, [generator], [offset], [groups], [count])
    if hidden:
        return patch_inverted_residual(x, weights, bias, hidden, out_channels, halo)
    return patch_conv2d(x, weights, bias, out_channels, [1, 1], 1, [1, 1], "reflect").relu()


def silu(z: Tensor) -> Tensor:
    return z / (1 + torch.exp(-z))


def mbconv(
    x,
    expand,
    expand_bias,
    depthwise,
    depthwise_bias,
    reduce,
    reduce_bias,
    gate,
    gate_bias,
    project,
    project_bias,
    stride,
    padding,
    residual,
):
    """Sum the depthwise convolution tap by tap. Zeros pad the expanded map, not the input (SPEC B.1)."""
    y = x if expand is None else silu(torch.einsum("hc,ncyx->nhyx", expand, x) + expand_bias[:, None, None])
    left, right, top, bottom = padding
    n, hidden, height, width = y.shape
    padded = x.new_zeros(n, hidden, height + top + bottom, width + left + right)
    padded[:, :, top : top + height, left : left + width] = y
    size = depthwise.shape[1]
    rows, columns = (padded.shape[2] - size) // stride + 1, (padded.shape[3] - size) // stride + 1
    y = depthwise_bias[:, None, None].repeat(n, 1, rows, columns)
    for ky in range(size):
        for kx in range(size):
            seen = padded[:, :, ky : ky + stride * rows : stride, kx : kx + stride * columns : stride]
            y += depthwise[:, ky, kx, None, None] * seen[:, :, :rows, :columns]
    y = silu(y)
    squeezed = silu(torch.stack([image.flatten(1).mean(1) for image in y]) @ reduce.T + reduce_bias)
    gates = 1 / (1 + torch.exp(-(squeezed @ gate.T + gate_bias)))
    y = torch.einsum("oh,nhyx->noyx", project, y * gates[:, :, None, None]) + project_bias[:, None, None]
    return x + y if residual else y


def mbconv_chain(x, weights, expanded, strides, paddings, residuals, kept):
    outputs, used = [], 0
    for i, stride in enumerate(strides):
        count = 10 if expanded[i] else 8
        block = [None] * (10 - count) + weights[used : used + count]
        x = mbconv(x, *block, stride, paddings[4 * i : 4 * i + 4], residuals[i])
        used += count
        outputs.append(x)
    return [output for i, output in enumerate(outputs) if kept[i]]


def stem(frames, scale, shift, weight, bias, height, width, stride, padding):
    """Normalise pixel by pixel into a padded image, then sum the convolution tap by tap (SPEC B.1, B.2, C.3)."""
    n, rows, columns, _ = frames.shape
    left, right, top, bottom = padding
    padded = weight.new_zeros(n, 3, top + height + bottom, left + width + right)
    for y in range(height):
        for x in range(width):
            pixel = frames[:, min(y, rows - 1), min(x, columns - 1)].to(scale.dtype)
            padded[:, :, top + y, left + x] = (pixel * scale + shift).to(weight.dtype)
    size = weight.shape[2]
    out_rows, out_columns = (padded.shape[2] - size) // stride + 1, (padded.shape[3] - size) // stride + 1
    y = bias[:, None, None].repeat(n, 1, out_rows, out_columns)
    for ky in range(size):
        for kx in range(size):
            seen = padded[:, :, ky : ky + stride * out_rows : stride, kx : kx + stride * out_columns : stride]
            y += torch.einsum("oc,ncyx->noyx", weight[:, :, ky, kx], seen[:, :, :out_rows, :out_columns])
    return silu(y)


def normalise_frames(frames, scale, shift, like, height, width):
    n, rows, columns, _ = frames.shape
    out = like.new_empty(n, 3, height, width)
    for y in range(height):
        for x in range(width):
            pixel = frames[:, min(y, rows - 1), min(x, columns - 1)].to(scale.dtype)
            out[:, :, y, x] = (pixel * scale + shift).to(like.dtype)
    return out


ACTIVATIONS = {"none": lambda z: z, "relu": lambda z: torch.maximum(z, torch.zeros_like(z)), "silu": silu}


def pointwise_conv(xs, weights, biases, activations):
    return [
        ACTIVATIONS[act](torch.einsum("oc,ncyx->noyx", w, x) + b[:, None, None])
        for x, w, b, act in zip(xs, weights, biases, activations, strict=True)
    ]


def context_head(x, reduce, reduce_bias, down, down_biases, up, up_biases):
    """Pixel by pixel: sum the four taps of a halving, and look up the context of each pixel (SPEC C)."""

    def conv(z, weight, bias, act="relu"):
        return pointwise_conv([z], [weight], [bias], [act])[0]

    maps = [x if reduce is None else conv(x, reduce, reduce_bias)]
    for weight, bias in zip(down, down_biases, strict=True):
        n, _, h, w = maps[-1].shape
        half = x.new_zeros(n, len(weight), (h + 1) // 2, (w + 1) // 2)
        for y in range(half.shape[2]):
            for c in range(half.shape[3]):
                for dy in range(2):
                    for dx in range(2):
                        pixel = maps[-1][:, :, min(2 * y + dy, h - 1), min(2 * c + dx, w - 1)]
                        half[:, :, y, c] += pixel @ weight[:, :, dy, dx].T
        maps.append(torch.maximum(half + bias[:, None, None], torch.zeros_like(half)))
    mean = maps[-1].flatten(2).mean(2)

    def doubled(z, like):
        if z.dim() == 2:
            return z[:, :, None, None].expand(-1, -1, *like.shape[2:])
        rows, columns = (torch.arange(size) // 2 for size in like.shape[2:])
        return z[:, :, rows][:, :, :, columns]

    context = mean
    for i in reversed(range(len(up))):
        at = maps[i] if reduce is None else maps[i + 1]
        act = "none" if reduce is None and i == 0 else "relu"
        context = conv(torch.cat([at, doubled(context, at)], 1), up[i], up_biases[i], act)
    return context if reduce is None else torch.cat([maps[0], doubled(context, maps[0])], 1)


def upsample_argmax(logits, height, width):
    """Compare class by class. The largest score wins, NaN is larger than all numbers, and the first of equals wins."""
    scores = resize(logits, height, width)
    best, label = scores[:, 0].clone(), torch.zeros(scores[:, 0].shape, dtype=torch.uint8)
    for c in range(1, logits.shape[1]):
        better = (scores[:, c] > best) | (scores[:, c].isnan() & ~best.isnan())
        best[better] = scores[:, c][better]
        label[better] = c
    return label


def decoder_level_argmax(skip, *args):
    return upsample_argmax(decoder_level(skip, *args), *skip.shape[2:])


def pixel_losses(logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """Return -log softmax at the label, [N, H, W]; ignored pixels are 0."""
    scores = resize(logits, *labels.shape[1:])
    ignored = labels == ignore_index
    chosen = scores.gather(1, labels.masked_fill(ignored, 0)[:, None])[:, 0]
    return (scores.logsumexp(1) - chosen).masked_fill(ignored, 0)


def upsample_cross_entropy(logits, labels, weight, ignore_index, bootstrap, threshold):
    """Return the loss of SPEC A.3, image by image. An image with at most ``bootstrap`` pixels counts all of them."""
    labels = labels.long()
    weight = torch.ones(logits.shape[1], dtype=logits.dtype) if weight is None else weight
    each = torch.tensor([0.0 if c == ignore_index else float(weight[c]) for c in labels.flatten()], dtype=logits.dtype)
    losses = pixel_losses(logits, labels, ignore_index) * each.view(labels.shape)
    if not bootstrap:
        return losses.sum() / (each.sum() or 1)
    per_image = []
    for image in losses:
        ranked = image.flatten().sort(descending=True).values
        if len(ranked) > bootstrap and ranked[bootstrap] > threshold:
            per_image.append(ranked[ranked > threshold].mean())
        else:
            per_image.append(ranked[:bootstrap].mean())
    return torch.stack(per_image).mean()
