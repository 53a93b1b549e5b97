"""``patch_inverted_residual_batch_norm`` in Triton: the block of training, normalised by batch statistics."""

from torch import Tensor

from hyperseg.kernels.inverted_residual import Block, backward_batch_norm, forward_batch_norm
from hyperseg.kernels.maps import follow


def patch_inverted_residual_batch_norm(
    x: Tensor, weights: Tensor, scale: Tensor, shift: Tensor, hidden: int, out_channels: int, halo: str, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """``(y, mean, biased variance)``: [N, C, H, W] -> [N, out_channels, H, W], twice [2 * hidden + out_channels]."""
    out = follow(x, out_channels)
    block = Block(x.shape[1], hidden, out_channels, halo)
    mean, variance = forward_batch_norm(block, x, weights, scale, shift, eps, out)
    return out, mean.to(scale.dtype), variance.to(scale.dtype)


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
    mean: Tensor,
    variance: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, weights, scale and shift, with the forward's statistics."""
    block = Block(x.shape[1], hidden, out_channels, halo)
    return backward_batch_norm(block, grad, x, weights, scale, shift, eps, mean, variance)
