"""Shapes, memory formats and index maps that operators, models and the reference agree on."""

import torch
import torch.nn.functional as F
from torch import Tensor


def memory_format(x: Tensor) -> torch.memory_format:
    """The memory format of an operator's output: channels-last if its (first) feature map is, else contiguous."""
    channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if channels_last else torch.contiguous_format


def empty_map(like: Tensor, channels: int) -> Tensor:
    """An uninitialised map ``[N, channels, H, W]`` with the dtype, device and memory format of ``like``."""
    n, _, h, w = like.shape
    return torch.empty((n, channels, h, w), dtype=like.dtype, device=like.device, memory_format=memory_format(like))


def coordinates(height: int, width: int, like: Tensor) -> Tensor:
    """``[1, 2, height, width]``: x then y, from -1 to 1 between the centres of the corner pixels (SPEC F)."""
    precise = torch.promote_types(like.dtype, torch.float32)
    x = torch.linspace(-1, 1, width, device=like.device, dtype=precise)
    y = torch.linspace(-1, 1, height, device=like.device, dtype=precise)
    xy = torch.stack([x.expand(height, width), y[:, None].expand(height, width)])
    return xy[None].to(like.dtype)


def level_input(skip: Tensor, previous: Tensor | None) -> Tensor:
    """The input of a level's block: coordinates, skip feature, upsampled previous output, on channels (SPEC F)."""
    n, _, h, w = skip.shape
    parts = [coordinates(h, w, skip).expand(n, -1, -1, -1), skip]
    if previous is not None:
        if previous.shape[2:] != skip.shape[2:]:
            previous = F.interpolate(previous, size=(h, w), mode="bilinear", align_corners=False)
        parts.append(previous)
    return torch.cat(parts, 1)


def level_parameters(in_channels: int, hidden: int, out_channels: int) -> int:
    """The number of generated parameters per patch of a level; ``hidden = 0`` is a 1x1 level (SPEC E)."""
    if hidden:
        return in_channels * hidden + 9 * hidden + hidden * out_channels
    return in_channels * out_channels


def resize_logits(logits: Tensor, height: int, width: int) -> Tensor:
    """Resize bilinearly, with ``align_corners=False``; return the logits themselves if the size is right."""
    if logits.shape[2:] == (height, width):
        return logits
    return F.interpolate(logits, size=(height, width), mode="bilinear", align_corners=False)
