"""Feature maps that launchers allocate: outputs, hidden maps, window maps."""

import torch
from torch import Tensor


def output_map(x: Tensor, channels: int, size: tuple[int, int] | None = None) -> Tensor:
    """Return an empty [N, channels, *size] in the memory format of map ``x``, by default of its size."""
    channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    shape = (x.shape[0], channels, *(size or x.shape[2:]))
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format)


def channels_last_map(like: Tensor, channels: int, height: int, width: int, dtype: torch.dtype | None = None) -> Tensor:
    """Return an empty [N, channels, height, width] in channels-last memory."""
    shape = (like.shape[0], channels, height, width)
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device, memory_format=torch.channels_last)


def hidden_map(like: Tensor, hidden: int, grid: tuple[int, int], halo: str) -> Tensor:
    """Return an empty map of hidden values, with halo ``"own"`` a window map; channels rounded up to 16."""
    height, width = like.shape[2:]
    if halo == "own":
        height, width = height + 2 * grid[0], width + 2 * grid[1]
    return channels_last_map(like, (hidden + 15) // 16 * 16, height, width)


def unit_stride(weights: Tensor) -> Tensor:
    """Return generated weights [N, fh, fw, P] with contiguous parameters, copied if need be."""
    return weights if weights.stride(3) == 1 else weights.contiguous()


def alignment(channels: int, x: Tensor) -> int:
    """Return 8 if every pixel starts at a multiple of 8 elements, else 1; Triton itself only finds multiples of 16."""
    return 8 if all(value % 8 == 0 for value in (channels, x.stride(2), x.stride(3))) else 1
