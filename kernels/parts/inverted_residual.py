"""The inverted residual with generated weights, norms folded: the sequence of launches, forward and backward.

The hidden map passes through memory once, written by the expansion and read by the depthwise step; at batch 1 it fits
the L2 cache. The backward pass saves no activations: it recomputes hidden values from the input.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hyperseg.kernels.language import RELU6
from hyperseg.kernels.parts.depthwise_bwd import depthwise_backward, depthwise_backward_weights
from hyperseg.kernels.parts.depthwise_fwd import depthwise, depthwise_project
from hyperseg.kernels.parts.maps import channels_last_map, hidden_map, unit_stride
from hyperseg.kernels.parts.pointwise import Matrix, matrix_at, patch_pointwise, patch_wgrad
from hyperseg.kernels.parts.window_adjoints import windows_backward

Norm = tuple[Tensor, Tensor]  # scale and shift, float32 [C]


@dataclass(frozen=True)
class Block:
    """Widths and halo of a block, and the positions of its three weights among a patch's parameters."""

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

    @property
    def widths(self) -> list[int]:
        """Channels of the three norms."""
        return [self.hidden, self.hidden, self.outputs]

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
    """Fill ``out`` with the block applied to (coordinates, x, previous resized to x), norms folded."""
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
    later = None if bias is None else bias[block.hidden :]
    depthwise_project(hidden, weights, block.taps, later, block.hidden, out, block.halo)


def backward(
    block: Block, grad: Tensor, x: Tensor, weights: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weights and bias, norms folded; the bias gradient also without a bias."""
    shift = x.new_zeros(sum(block.widths), dtype=torch.float32) if bias is None else bias.float().contiguous()
    ones = torch.ones_like(shift)
    norm1, norm2, _ = zip(ones.split(block.widths), shift.split(block.widths), strict=True)
    sums = []

    def keep_sum(i: int, d: Tensor, z: Tensor, partials: Tensor) -> None:
        sums.append(partials[:, 0].sum(0))

    d_x, d_weights = backward_steps(block, grad, x, unit_stride(weights), norm1, norm2, keep_sum)
    d_bias = torch.cat([sums[1], sums[0], grad.float().sum((0, 2, 3))])
    return d_x, d_weights, d_bias


def recompute_hidden(block: Block, x: Tensor, weights: Tensor, norm1: Norm) -> tuple[Tensor, Tensor]:
    """Return z1 and z2, the inputs of the first two norms."""
    z1 = block.hidden_map(x, weights)
    patch_pointwise(x, weights, block.expand, z1, halo=block.own)
    z2 = channels_last_map(x, z1.shape[1], *x.shape[2:])
    depthwise(z1, weights, block.taps, norm1, block.hidden, z2, block.halo)
    return z1, z2


def backward_steps(
    block: Block,
    d3: Tensor,
    x: Tensor,
    weights: Tensor,
    norm1: Norm,
    norm2: Norm,
    through_norm: Callable[[int, Tensor, Tensor, Tensor], None],
    hidden: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and weights, given ``d3``, the gradient of the last norm's input.

    Args:
        through_norm: ``through_norm(i, d, z, sums)`` turns the gradient of the output of norm ``i`` (1, then 0) into
            that of its input, in place.
        hidden: z1 and z2 where the caller has them; else they are recomputed.
    """
    fh, fw = weights.shape[1:3]
    z1, z2 = hidden or recompute_hidden(block, x, weights, norm1)
    d_weights = torch.empty(weights.shape, dtype=weights.dtype, device=weights.device)
    patch_wgrad(d3, z2, block.project, d_weights, norm=norm2)
    d2 = torch.empty_like(z2)
    sums = patch_pointwise(d3, weights, block.project.transposed, d2, gate=(z2, *norm2), partials="sums")
    assert sums is not None
    through_norm(1, d2, z2, sums)
    depthwise_backward_weights(d2, z1, block.taps, norm1, block.hidden, d_weights, block.halo)
    d1 = torch.empty_like(z1)
    sums = depthwise_backward(d2, weights, block.taps, z1, norm1, block.hidden, d1, block.halo, partials=True)
    assert sums is not None
    through_norm(0, d1, z1, sums)
    patch_wgrad(d1, x, block.expand, d_weights, halo=block.own)
    d_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if not block.own:
        patch_pointwise(d1, weights, block.expand.transposed, d_x)
        return d_x, d_weights
    d_windows = channels_last_map(x, block.inputs, *z1.shape[2:])
    patch_pointwise(d1, weights, block.expand.transposed, d_windows)
    windows_backward(d_windows, (fh, fw), d_x)
    return d_x, d_weights
