"""The inverted residual with a patch's own weights, as a sequence of kernels: forward, backward, by batch statistics.

Hidden values pass through memory once, expanded by one kernel and filtered and projected by the next; they fit the
second-level cache at batch 1. Backward keeps nothing of the forward pass but the statistics: hidden values are made
again from the input.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyperseg.kernels.depthwise import (
    depthwise,
    depthwise_backward,
    depthwise_backward_weights,
    depthwise_project,
)
from hyperseg.kernels.gather import windows_backward
from hyperseg.kernels.maps import NONE, RELU6, hidden_map, moments, new_map, unit_stride
from hyperseg.kernels.patch_pointwise import Matrix, matrix_at, patch_outer, patch_pointwise

Norm = tuple[Tensor, Tensor]  # scale and shift, float32 [C]


@dataclass(frozen=True)
class Block:
    """Widths and halo of a block, and where its three parts lie among a patch's parameters."""

    inputs: int
    hidden: int
    outputs: int
    halo: str

    @property
    def own(self) -> bool:
        return self.halo == "own"

    @property
    def expand(self) -> Matrix:
        return matrix_at(0, self.hidden, self.inputs)

    @property
    def taps(self) -> int:
        return self.inputs * self.hidden

    @property
    def project(self) -> Matrix:
        return matrix_at((self.inputs + 9) * self.hidden, self.outputs, self.hidden)

    def hidden_map(self, x: Tensor, weights: Tensor) -> Tensor:
        return hidden_map(x, self.hidden, (weights.shape[1], weights.shape[2]), self.halo)


def forward(
    block: Block,
    x: Tensor,
    weights: Tensor,
    bias: Tensor | None,
    out: Tensor,
    previous: Tensor | None = None,
    coordinates: bool = False,
) -> None:
    """Fill ``out`` with the block of (coordinates, x, previous resized to x), norms folded."""
    weights = unit_stride(weights)
    hidden = block.hidden_map(x, weights)
    patch_pointwise(
        x,
        weights,
        block.expand,
        hidden,
        previous=previous,
        coordinates=coordinates,
        halo=block.own,
        bias=bias,
        activation=RELU6,
    )
    behind = None if bias is None else bias[block.hidden :]
    depthwise_project(hidden, weights, block.taps, behind, block.hidden, out, block.halo)


def forward_batch_norm(
    block: Block, x: Tensor, weights: Tensor, scale: Tensor, shift: Tensor, eps: float, out: Tensor
) -> tuple[Tensor, Tensor]:
    """The same with each step normalised by its statistics over the batch, which it returns: mean, biased variance."""
    weights = unit_stride(weights)
    widths = [block.hidden, block.hidden, block.outputs]
    gammas, betas = scale.float().split(widths), shift.float().split(widths)
    statistics = []

    def norm(partials: Tensor | None) -> Norm:
        assert partials is not None
        statistics.append(moments(partials))
        i = len(statistics) - 1
        return affine(gammas[i], betas[i], *statistics[i], eps)

    z1 = block.hidden_map(x, weights)
    norm1 = norm(patch_pointwise(x, weights, block.expand, z1, halo=block.own, partials="moments"))
    z2 = new_map(x, z1.shape[1], *x.shape[2:])
    norm2 = norm(depthwise(z1, weights, block.taps, norm1, block.hidden, z2, block.halo, partials=True))
    z3 = new_map(x, block.outputs, *x.shape[2:], torch.float32)
    norm3 = norm(patch_pointwise(z2, weights, block.project, z3, norm=norm2, partials="moments"))
    out.copy_(z3 * norm3[0][:, None, None] + norm3[1][:, None, None])
    mean, variance = (torch.cat(parts) for parts in zip(*statistics, strict=True))
    return mean, variance


def affine(gamma: Tensor, beta: Tensor, mean: Tensor, variance: Tensor, eps: float) -> Norm:
    """Scale and shift of a batch norm."""
    scale = gamma * torch.rsqrt(variance + eps)
    return scale, beta - mean * scale


def backward(
    block: Block, grad: Tensor, x: Tensor, weights: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weights and bias, norms folded; that of the bias is made whether or not there is one."""
    widths = [block.hidden, block.hidden, block.outputs]
    shift = x.new_zeros(sum(widths), dtype=torch.float32) if bias is None else bias.float().contiguous()
    ones = torch.ones_like(shift)
    norm1, norm2, _ = zip(ones.split(widths), shift.split(widths), strict=True)
    sums = []

    def keep(i: int, d: Tensor, z: Tensor, partials: Tensor) -> None:
        sums.append(partials[:, 0].sum(0))

    d_x, d_weights = _backward(block, grad, x, unit_stride(weights), norm1, norm2, keep)
    d_bias = torch.cat([sums[1], sums[0], grad.float().sum((0, 2, 3))])
    return d_x, d_weights, d_bias


def backward_batch_norm(
    block: Block,
    grad: Tensor,
    x: Tensor,
    weights: Tensor,
    scale: Tensor,
    shift: Tensor,
    eps: float,
    mean: Tensor,
    variance: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weights, scale and shift, given the statistics of the forward pass."""
    weights = unit_stride(weights)
    widths = [block.hidden, block.hidden, block.outputs]
    gammas, means = scale.float().split(widths), mean.float().split(widths)
    deviations = torch.rsqrt(variance.float() + eps).split(widths)
    norm1, norm2, _ = (
        ((g * r).contiguous(), (b - m * g * r).contiguous())
        for g, b, m, r in zip(gammas, shift.float().split(widths), means, deviations, strict=True)
    )
    found: dict[int, tuple[Tensor, Tensor]] = {}

    def through(i: int, d: Tensor, z: Tensor, partials: Tensor) -> None:
        """From the gradient behind norm ``i`` to that before it, in place."""
        total, by_z = partials.double().sum(0)
        d_gamma = (by_z - means[i] * total) * deviations[i]
        found[i] = d_gamma.float(), total.float()
        count = d.numel() // d.shape[1]
        factor = gammas[i] * deviations[i]
        slope = factor * deviations[i] * found[i][0] / count
        offset = means[i] * slope - factor * found[i][1] / count
        _combine(d, z, factor, -slope, offset)

    # What the last norm saw, and its gradient: narrow maps, so plain PyTorch.
    z1, z2 = _hidden(block, x, weights, norm1)
    z3 = new_map(x, block.outputs, *x.shape[2:], torch.float32)
    patch_pointwise(z2, weights, block.project, z3, norm=norm2)
    normalised = (z3 - means[2][:, None, None]) * deviations[2][:, None, None]
    wide_grad = grad.float()
    total, d_gamma = wide_grad.sum((0, 2, 3)), (wide_grad * normalised).sum((0, 2, 3))
    found[2] = d_gamma, total
    count = grad.numel() // block.outputs
    centred = wide_grad - total[:, None, None] / count - normalised * (d_gamma / count)[:, None, None]
    d3 = (centred * (gammas[2] * deviations[2])[:, None, None]).to(x.dtype)

    d_x, d_weights = _backward(block, d3, x, weights, norm1, norm2, through, (z1, z2))
    d_scale, d_shift = (torch.cat([found[i][part] for i in range(3)]).to(scale.dtype) for part in range(2))
    return d_x, d_weights, d_scale, d_shift


def _hidden(block: Block, x: Tensor, weights: Tensor, norm1: Norm) -> tuple[Tensor, Tensor]:
    """What the first two norms see."""
    z1 = block.hidden_map(x, weights)
    patch_pointwise(x, weights, block.expand, z1, halo=block.own, activation=NONE)
    z2 = new_map(x, z1.shape[1], *x.shape[2:])
    depthwise(z1, weights, block.taps, norm1, block.hidden, z2, block.halo)
    return z1, z2


def _backward(
    block: Block,
    d3: Tensor,
    x: Tensor,
    weights: Tensor,
    norm1: Norm,
    norm2: Norm,
    through: Callable[[int, Tensor, Tensor, Tensor], None],
    hidden: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradients of x and weights, given that before the last norm.

    ``through(i, d, z, sums)`` turns the gradient behind norm ``i`` (1, then 0) into that before it, in place.
    """
    fh, fw = weights.shape[1:3]
    z1, z2 = hidden or _hidden(block, x, weights, norm1)
    d_weights = torch.empty(weights.shape, dtype=weights.dtype, device=weights.device)
    patch_outer(d3, z2, block.project, d_weights, norm=norm2)
    d2 = torch.empty_like(z2)
    sums = patch_pointwise(d3, weights, block.project.transposed, d2, gate=(z2, *norm2), partials="sums")
    assert sums is not None
    through(1, d2, z2, sums)
    depthwise_backward_weights(d2, z1, block.taps, norm1, block.hidden, d_weights, block.halo)
    d1 = torch.empty_like(z1)
    sums = depthwise_backward(d2, weights, block.taps, z1, norm1, block.hidden, d1, block.halo, partials=True)
    assert sums is not None
    through(0, d1, z1, sums)
    patch_outer(d1, x, block.expand, d_weights, halo=block.own)
    d_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if not block.own:
        patch_pointwise(d1, weights, block.expand.transposed, d_x)
        return d_x, d_weights
    d_windows = new_map(x, block.inputs, *z1.shape[2:])
    patch_pointwise(d1, weights, block.expand.transposed, d_windows)
    windows_backward(d_windows, (fh, fw), d_x)
    return d_x, d_weights


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
    """d = by_d * d + by_z * z + offset for each channel, in place; both in channels-last memory, spare channels 0."""
    channels = d.shape[1]
    factors = d.new_zeros((3, channels), dtype=torch.float32)
    factors[:, : by_d.shape[0]] = torch.stack([by_d, by_z, offset])
    size = 1024
    with torch.cuda.device_of(d):
        _combine_kernel[(triton.cdiv(d.numel(), size),)](
            d, z, factors, d.numel(), C=channels, BLOCK=size, num_warps=4, enable_fp_fusion=True
        )
