"""``patch_inverted_residual`` (norms folded) and ``patch_inverted_residual_batch_norm`` (training) in Triton.

The launches that both share with ``decoder_level`` are in ``parts/inverted_residual.py``. Batch norm adds a kernel that
takes a gradient through the norm, and statistics reduced from the partial sums that each program writes.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from hyperseg._distributed import all_reduce
from hyperseg.kernels.launch import cdiv
from hyperseg.kernels.parts.depthwise_fwd import depthwise
from hyperseg.kernels.parts.inverted_residual import Block, Norm, backward, backward_steps, forward, recompute_hidden
from hyperseg.kernels.parts.maps import channels_last_map, output_map, unit_stride
from hyperseg.kernels.parts.pointwise import patch_pointwise


def patch_inverted_residual(
    x: Tensor, weights: Tensor, bias: Tensor | None, hidden: int, out_channels: int, halo: str
) -> Tensor:
    """Expand, depthwise 3x3 and project each patch with its own weights: [N, C, H, W] -> [N, out_channels, H, W]."""
    out = output_map(x, out_channels)
    bias = None if bias is None else bias.contiguous()
    forward(Block(x.shape[1], hidden, out_channels, halo), x, weights, bias, out)
    return out


def patch_inverted_residual_backward(
    grad: Tensor, x: Tensor, weights: Tensor, bias: Tensor | None, hidden: int, out_channels: int, halo: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weights and bias; an empty one where there is no bias."""
    block = Block(x.shape[1], hidden, out_channels, halo)
    d_x, d_weights, d_bias = backward(block, grad, x, weights, bias)
    return d_x, d_weights, grad.new_empty(0) if bias is None else d_bias.to(bias.dtype)


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
    """Return the output [N, out_channels, H, W], and mean and biased variance, each [2 * hidden + out_channels].

    The statistics are of the values of all processes in the group of this name, of this process alone if it is "".
    """
    block = Block(x.shape[1], hidden, out_channels, halo)
    weights = unit_stride(weights)
    gammas, betas = scale.float().split(block.widths), shift.float().split(block.widths)
    statistics: list[tuple[Tensor, Tensor]] = []

    def norm(partials: Tensor | None) -> Norm:
        assert partials is not None
        i = len(statistics)
        statistics.append(_moments(partials, group))
        return _affine(gammas[i], betas[i], *statistics[i], eps)

    z1 = block.hidden_map(x, weights)
    norm1 = norm(patch_pointwise(x, weights, block.expand, z1, halo=block.own, partials="moments"))
    z2 = channels_last_map(x, z1.shape[1], *x.shape[2:])
    norm2 = norm(depthwise(z1, weights, block.taps, norm1, block.hidden, z2, block.halo, partials=True))
    z3 = channels_last_map(x, block.outputs, *x.shape[2:], torch.float32)
    norm3 = norm(patch_pointwise(z2, weights, block.project, z3, norm=norm2, partials="moments"))
    out = output_map(x, out_channels)
    out.copy_(z3 * norm3[0][:, None, None] + norm3[1][:, None, None])
    mean, variance = (torch.cat(parts).to(scale.dtype) for parts in zip(*statistics, strict=True))
    return out, mean, variance


def patch_inverted_residual_batch_norm_backward(
    grad: Tensor,
    x: Tensor,
    weights: Tensor,
    scale: Tensor,
    shift: Tensor,
    hidden: int,
    out_channels: int,
    halo: str,
    eps: float,
    group: str,
    mean: Tensor,
    variance: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, weights, scale and shift, given the statistics of the forward pass."""
    block = Block(x.shape[1], hidden, out_channels, halo)
    weights = unit_stride(weights)
    gammas, means = scale.float().split(block.widths), mean.float().split(block.widths)
    deviations = torch.rsqrt(variance.float() + eps).split(block.widths)
    norm1, norm2, _ = (
        ((g * r).contiguous(), (b - m * g * r).contiguous())
        for g, b, m, r in zip(gammas, shift.float().split(block.widths), means, deviations, strict=True)
    )
    found: dict[int, tuple[Tensor, Tensor]] = {}  # gradients of scale and shift, by norm

    def through_norm(i: int, d: Tensor, z: Tensor, partials: Tensor) -> None:
        total, by_z = partials.double().sum(0)
        d_gamma = (by_z - means[i] * total) * deviations[i]
        found[i] = d_gamma.float(), total.float()
        by_value, by_one, count = _gradient_sums(*found[i], d.numel() // d.shape[1], group)
        factor = gammas[i] * deviations[i]
        slope = factor * deviations[i] * by_value / count
        offset = means[i] * slope - factor * by_one / count
        _combine(d, z, factor, -slope, offset)

    # The last norm's input and its gradient are narrow maps: plain PyTorch.
    z1, z2 = recompute_hidden(block, x, weights, norm1)
    z3 = channels_last_map(x, block.outputs, *x.shape[2:], torch.float32)
    patch_pointwise(z2, weights, block.project, z3, norm=norm2)
    normalised = (z3 - means[2][:, None, None]) * deviations[2][:, None, None]
    grad = grad.float()
    total, d_gamma = grad.sum((0, 2, 3)), (grad * normalised).sum((0, 2, 3))
    found[2] = d_gamma, total
    by_value, by_one, count = _gradient_sums(*found[2], grad.numel() // block.outputs, group)
    centred = grad - by_one[:, None, None] / count - normalised * (by_value / count)[:, None, None]
    d3 = (centred * (gammas[2] * deviations[2])[:, None, None]).to(x.dtype)

    d_x, d_weights = backward_steps(block, d3, x, weights, norm1, norm2, through_norm, (z1, z2))
    d_scale, d_shift = (torch.cat([found[i][part] for i in range(3)]).to(scale.dtype) for part in range(2))
    return d_x, d_weights, d_scale, d_shift


def _moments(partials: Tensor, group: str) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance [C] over all pixels, from the rows that ``store_moments`` wrote.

    In float64 and a fixed order (Chan, Golub and LeVeque, 1979): no cancellation, bitwise deterministic. With a group,
    from the processes' sums of values and of squares, also in float64.
    """
    counts, mean, squares = partials.double().unbind(1)
    total = counts.sum(0)
    overall = (mean * counts).sum(0) / total
    variance = (squares + counts * (mean - overall).square()).sum(0) / total
    if group:
        sums = torch.cat([overall * total, (variance + overall.square()) * total, total[:1]])
        sums = all_reduce(sums, group)
        overall, second = (sums[:-1] / sums[-1]).chunk(2)
        variance = (second - overall.square()).clamp(min=0)
    return overall.to(partials.dtype), variance.to(partials.dtype)


def _gradient_sums(by_value: Tensor, by_one: Tensor, count: int, group: str) -> tuple[Tensor, Tensor, int | Tensor]:
    """Return the two sums of a norm's gradient, and the number of values, over all processes of the group."""
    if not group:
        return by_value, by_one, count
    sums = F.pad(torch.cat([by_value, by_one]).double(), (0, 1), value=count)
    sums = all_reduce(sums, group)
    by_value, by_one = sums[:-1].float().chunk(2)
    return by_value, by_one, sums[-1].float()


def _affine(gamma: Tensor, beta: Tensor, mean: Tensor, variance: Tensor, eps: float) -> Norm:
    """Return scale and shift of a batch norm."""
    scale = gamma * torch.rsqrt(variance + eps)
    return scale, beta - mean * scale


@triton.jit
def _combine_kernel(
    d_ptr,  # [count, C], changed in place
    z_ptr,
    factors_ptr,  # float32 [3, C]
    values,  # count * C
    C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """d = factors[0] * d + factors[1] * z + factors[2]."""
    o = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m = o < values
    c = (o % C).to(tl.int32)
    b_d = tl.load(d_ptr + o, mask=m, other=0.0).to(tl.float32)
    b_z = tl.load(z_ptr + o, mask=m, other=0.0).to(tl.float32)
    by_d, by_z, offset = tl.load(factors_ptr + c), tl.load(factors_ptr + C + c), tl.load(factors_ptr + 2 * C + c)
    tl.store(d_ptr + o, (b_d * by_d + b_z * by_z + offset).to(d_ptr.dtype.element_ty), mask=m)


def _combine(d: Tensor, z: Tensor, by_d: Tensor, by_z: Tensor, offset: Tensor) -> None:
    """Compute d = by_d * d + by_z * z + offset per channel, in place; d and z are channels-last, spare channels 0."""
    channels = d.shape[1]
    factors = d.new_zeros((3, channels), dtype=torch.float32)
    factors[:, : by_d.shape[0]] = torch.stack([by_d, by_z, offset])
    size = 1024
    with torch.cuda.device_of(d):
        _combine_kernel[(cdiv(d.numel(), size),)](
            d, z, factors, d.numel(), C=channels, BLOCK=size, num_warps=4, enable_fp_fusion=True
        )
