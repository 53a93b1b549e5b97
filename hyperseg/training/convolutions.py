"""Convolutions of the encoder on a CPU, where PyTorch's choice of an algorithm is far from the fastest.

Both functions compute what PyTorch computes, up to the order of sums.
"""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_ONEDNN_BATCH = 16  # PyTorch gives 1x1 convolutions to oneDNN from this batch on, or with several threads
_KERNEL_WIDTH = 3  # up to this, oneDNN has a kernel for the weight gradient of a depthwise convolution

# Below these sizes the other form is slower, measured with AVX-512.
_LEAST_PIXELS_OF_PART, _LEAST_PRODUCTS = 8, 4_000_000
_LEAST_PIXELS_OF_HALVES = 128


def speed_up_pointwise(network: nn.Module) -> None:
    """Let 1x1 convolutions run by oneDNN with one thread too; in channels-last memory they do at any batch then.

    torchrun gives each process one thread. oneDNN takes half the time there, and less on thin maps.
    """
    for conv in network.modules():
        if type(conv) is nn.Conv2d and conv.kernel_size == conv.stride == (1, 1):
            conv.forward = functools.partial(_pointwise, conv.forward, conv.out_channels)  # type: ignore[method-assign]


def convolve(x: Tensor, kernel: Tensor, stride: tuple[int, ...], padding: list[int], groups: int) -> Tensor:
    """Return a convolution without bias."""

    def plain(x: Tensor) -> Tensor:
        return F.conv2d(x, kernel, None, stride, padding, 1, groups)

    return _pointwise(plain, len(kernel), x) if _is_pointwise(kernel, stride, padding, groups) else plain(x)


def _is_pointwise(kernel: Tensor, stride: tuple[int, ...], padding: list[int], groups: int) -> bool:
    return kernel.shape[2:] == (1, 1) and groups == 1 and tuple(stride) == (1, 1) and padding == [0, 0]


def _pointwise(plain: Callable[[Tensor], Tensor], channels: int, x: Tensor) -> Tensor:
    """Run what computes each pixel by itself, on a batch of another shape if that makes it faster."""
    if (parts := _parts(x, channels)) is None:
        return plain(x)
    return _as_maps(plain(_as_batch(x, parts)), x.shape)


def _parts(x: Tensor, channels: int) -> int | None:
    """Return into how many images the pixels of a batch are to be divided; None if they are to stay as they are."""
    if x.device.type != "cpu" or len(x) >= _ONEDNN_BATCH or torch.get_num_threads() > 1:
        return None
    if not x.is_contiguous(memory_format=torch.channels_last):
        return None
    rows = len(x) * x.shape[2]
    pixels = rows * x.shape[3]
    parts = _ONEDNN_BATCH if pixels % _ONEDNN_BATCH == 0 else rows
    if parts < _ONEDNN_BATCH or pixels < parts * _LEAST_PIXELS_OF_PART:
        return None
    return parts if pixels * x.shape[1] * channels >= _LEAST_PRODUCTS else None


def _as_batch(x: Tensor, parts: int) -> Tensor:
    """Return the pixels of maps in channels-last memory as so many images of one row."""
    channels = x.shape[1]
    return x.permute(0, 2, 3, 1).reshape(parts, 1, -1, channels).permute(0, 3, 1, 2)


def _as_maps(x: Tensor, shape: torch.Size) -> Tensor:
    """Undo :func:`_as_batch` for a map that may have other channels."""
    n, _, height, width = shape
    return x.permute(0, 2, 3, 1).reshape(n, height, width, -1).permute(0, 3, 1, 2)


def convolution_gradients(
    grad: Tensor, x: Tensor, kernel: Tensor, stride: tuple[int, ...], padding: list[int], groups: int
) -> tuple[Tensor, Tensor]:
    """Return the gradients of input and kernel of a convolution without bias."""
    if _has_slow_kernel_gradient(grad, kernel, stride, groups):
        d_x = _backward(grad, x, kernel, stride, padding, groups, (True, False))[0]
        return d_x, _wide_kernel_gradient(grad, x, kernel, stride, padding)
    if _is_pointwise(kernel, stride, padding, groups):
        return _pointwise_gradients(grad, x, kernel, (True, True))
    return _backward(grad, x, kernel, stride, padding, groups)


def pointwise_input_gradient(grad: Tensor, x: Tensor, kernel: Tensor) -> Tensor:
    """Return the gradient of the input of a 1x1 convolution; of ``x`` only the shape matters."""
    return _pointwise_gradients(grad, x, kernel, (True, False))[0]


def pointwise_kernel_gradient(grad: Tensor, x: Tensor, kernel: Tensor) -> Tensor:
    """Return the gradient of the kernel of a 1x1 convolution."""
    return _pointwise_gradients(grad, x, kernel, (False, True))[1]


def _pointwise_gradients(grad: Tensor, x: Tensor, kernel: Tensor, needed: tuple[bool, bool]) -> tuple[Tensor, Tensor]:
    if (parts := _parts(x, len(kernel))) is None:
        return _backward(grad, x, kernel, (1, 1), [0, 0], 1, needed)
    grad = grad.contiguous(memory_format=torch.channels_last)
    d_x, d_kernel = _backward(_as_batch(grad, parts), _as_batch(x, parts), kernel, (1, 1), [0, 0], 1, needed)
    return d_x if d_x is None else _as_maps(d_x, x.shape), d_kernel


def _backward(
    grad: Tensor,
    x: Tensor,
    kernel: Tensor,
    stride: tuple[int, ...],
    padding: list[int],
    groups: int,
    needed: tuple[bool, bool] = (True, True),
) -> tuple[Tensor, Tensor]:
    d_x, d_kernel, _ = torch.ops.aten.convolution_backward(
        grad, x, kernel, None, stride, padding, [1, 1], False, [0, 0], groups, [*needed, False]
    )
    return d_x, d_kernel


def _has_slow_kernel_gradient(grad: Tensor, kernel: Tensor, stride: tuple[int, ...], groups: int) -> bool:
    """Return whether the kernel's gradient is better computed in two halves."""
    depthwise = groups == grad.shape[1] == len(kernel) and kernel.shape[1] == 1
    wide = kernel.shape[3] == 2 * _KERNEL_WIDTH - 1 and stride[1] in (1, 2)
    pixels = grad.numel() // grad.shape[1]
    return grad.device.type == "cpu" and depthwise and wide and pixels >= _LEAST_PIXELS_OF_HALVES


def _wide_kernel_gradient(
    grad: Tensor, x: Tensor, kernel: Tensor, stride: tuple[int, ...], padding: list[int]
) -> Tensor:
    """Return the gradient of a depthwise kernel of five columns: of its first three, then of its last three.

    A kernel of three columns gives an output that is wider by ``more`` columns. The first three of the five see the
    output's gradient with so many zeros on the right of it, the last three with these on the left. In channels-last
    memory the zeros between two rows are both, so that one copy has both gradients.
    """
    if padding[1]:  # oneDNN's kernel takes less padding
        x = F.pad(x, (padding[1], padding[1], 0, 0))
        padding = [padding[0], 0]
    n, channels, height, width = grad.shape
    more = (_KERNEL_WIDTH - 1) // stride[1]
    rows, pixels = n * height, width + more
    memory = grad.new_empty((rows * pixels + more) * channels)
    memory[: more * channels].zero_()
    padded = memory[more * channels :].view(n, height, pixels, channels)
    padded[:, :, width:].zero_()
    padded[:, :, :width].copy_(grad.permute(0, 2, 3, 1))
    shape, strides = padded.shape, padded.stride()
    right = memory.as_strided(shape, strides, 0)
    d_kernel = torch.empty_like(kernel, memory_format=torch.contiguous_format)
    part = kernel[:, :, :, :_KERNEL_WIDTH]
    for place, gradient in ((0, padded), (_KERNEL_WIDTH - 1, right)):
        gradient = gradient.permute(0, 3, 1, 2)
        d_kernel[:, :, :, place : place + _KERNEL_WIDTH] = _backward(
            gradient, x, part, stride, padding, channels, (False, True)
        )[1]
    return d_kernel
