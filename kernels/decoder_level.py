"""``decoder_level`` in Triton: chooses among the kernels of parts/, forward and backward."""

import torch
import torch.nn.functional as F
from torch import Tensor

from hyperseg.kernels import generate_weights as generation
from hyperseg.kernels.language import RELU
from hyperseg.kernels.parts.generated_pointwise import fits, generated_pointwise
from hyperseg.kernels.parts.inverted_residual import Block, backward, forward
from hyperseg.kernels.parts.maps import output_map, unit_stride
from hyperseg.kernels.parts.pointwise import matrix_at, patch_pointwise, patch_wgrad
from hyperseg.kernels.parts.window_adjoints import resize_backward


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
    """[N, C, H, W], [N, D, h, w] and a signal and its generator, or weights -> [N, out_channels, H, W]."""
    out, bias = output_map(skip, out_channels), bias.contiguous()
    block = _block(skip, previous, hidden, out_channels, halo)
    if signal is not None and not hidden and fits(skip, previous, signal, generator, groups, block.inputs):
        generated_pointwise(skip, previous, signal[:, offset:], generator, bias, groups, out)
        return out
    weights = unit_stride(_weights(block, signal, generator, weights, offset, groups))
    if hidden:
        forward(block, skip, weights, bias, out, previous, True)
    else:
        matrix = matrix_at(0, out_channels, block.inputs)
        patch_pointwise(skip, weights, matrix, out, previous=previous, coordinates=True, bias=bias, activation=RELU)
    return out


def decoder_level_backward(
    grad: Tensor,
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of skip, previous, signal, generator, weights and bias; empty ones for absent tensors."""
    block = _block(skip, previous, hidden, out_channels, halo)
    weights = unit_stride(_weights(block, signal, generator, weights, offset, groups))
    x, bias = _input(skip, previous), bias.contiguous()
    if hidden:
        d_x, d_weights, d_bias = backward(block, grad, x, weights, bias)
    else:
        d_x, d_weights, d_bias = _pointwise_backward(block, grad, x, weights, bias)
    absent = grad.new_empty(0)
    d_skip = d_x[:, 2 : 2 + skip.shape[1]].clone(memory_format=torch.contiguous_format)
    d_previous = absent
    if previous is not None:
        d_previous = torch.empty(previous.shape, dtype=previous.dtype, device=previous.device)
        resize_backward(d_x[:, 2 + skip.shape[1] :], d_previous)
    d_signal = d_generator = absent
    if signal is not None:
        sizes = [weights.shape[3]]
        d_signal, (d_generator,) = generation.generate_weights_backward(
            d_weights, signal, [generator], [offset], [groups], sizes
        )
        d_weights = absent
    return d_skip, d_previous, d_signal, d_generator, d_weights, d_bias.to(bias.dtype)


def _block(skip: Tensor, previous: Tensor | None, hidden: int, out_channels: int, halo: str) -> Block:
    inputs = 2 + skip.shape[1] + (0 if previous is None else previous.shape[1])
    return Block(inputs, hidden, out_channels, halo)


def _weights(
    block: Block, signal: Tensor | None, generator: Tensor | None, weights: Tensor | None, offset: int, groups: int
) -> Tensor:
    if weights is not None:
        return weights
    size = block.inputs * block.outputs
    if block.hidden:
        size = (block.inputs + 9 + block.outputs) * block.hidden
    return generation.generate_weights(signal, [generator], [offset], [groups], [size])


def _input(skip: Tensor, previous: Tensor | None) -> Tensor:
    """Return the block's input [N, 2 + C + D, H, W] in channels-last memory."""
    n, _, height, width = skip.shape
    x = torch.linspace(-1, 1, width, device=skip.device, dtype=torch.float32).expand(n, 1, height, width)
    y = torch.linspace(-1, 1, height, device=skip.device, dtype=torch.float32)[:, None].expand(n, 1, height, width)
    parts = [x.to(skip.dtype), y.to(skip.dtype), skip]
    if previous is not None and previous.shape[2:] != skip.shape[2:]:
        previous = F.interpolate(previous, size=(height, width), mode="bilinear", align_corners=False)
    if previous is not None:
        parts.append(previous)
    return torch.cat([part.contiguous(memory_format=torch.channels_last) for part in parts], 1)


def _pointwise_backward(
    block: Block, grad: Tensor, x: Tensor, weights: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weights and bias of a 1x1 level."""
    matrix = matrix_at(0, block.outputs, block.inputs)
    y = output_map(x, block.outputs)
    patch_pointwise(x, weights, matrix, y, bias=bias, activation=RELU)
    d_y = torch.where(y <= 0, torch.zeros_like(grad), grad)
    d_weights = torch.empty(weights.shape, dtype=weights.dtype, device=weights.device)
    patch_wgrad(d_y, x, matrix, d_weights)
    d_x = torch.empty_like(x)
    patch_pointwise(d_y, weights, matrix.transposed, d_x)
    return d_x, d_weights, d_y.float().sum((0, 2, 3))
