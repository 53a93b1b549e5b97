"""``patch_inverted_residual`` in Triton: norms folded."""

from torch import Tensor

from hyperseg.kernels.inverted_residual import Block, backward, forward
from hyperseg.kernels.maps import follow


def patch_inverted_residual(
    x: Tensor, weights: Tensor, bias: Tensor | None, hidden: int, out_channels: int, halo: str
) -> Tensor:
    """Expand, depthwise 3x3 and project each patch with its own weights: [N, C, H, W] -> [N, out_channels, H, W]."""
    out = follow(x, out_channels)
    bias = None if bias is None else bias.contiguous()
    forward(Block(x.shape[1], hidden, out_channels, halo), x, weights, bias, out)
    return out


def patch_inverted_residual_backward(
    grad: Tensor, x: Tensor, weights: Tensor, bias: Tensor | None, hidden: int, out_channels: int, halo: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weights and bias; an empty one where there is no bias."""
    block = Block(x.shape[1], hidden, out_channels, halo)
    d_x, d_weights, d_bias = backward(block, grad, x, weights, bias)
    return d_x, d_weights, grad.new_empty(0) if bias is None else d_bias.to(bias.dtype)
