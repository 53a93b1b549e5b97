"""Test-time augmentation over scales and flips, as the official code does for list inputs (SPEC H.1)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hyperseg.ops._layout import resize_logits


def forward_pyramid(
    model: Callable[[Tensor], Tensor], pyramid: Sequence[Tensor], hflip: bool = True, gather: str = "mean"
) -> Tensor:
    """Return the combined logits of one batch of images at several scales.

    Args:
        model: maps images ``[N, 3, H, W]`` to logits ``[N, num_classes, H, W]``.
        pyramid: the same images ``[N, 3, H_i, W_i]`` at several sizes; the first is the size of the output.
        hflip: at each size, take the maximum of the logits and of the mirrored images' logits, mirrored back.
        gather: ``"mean"`` is the official running half-average: three scales weigh 1/4, 1/4, 1/2, not 1/3 each;
            ``"max"`` takes the maximum.

    Returns:
        ``[N, num_classes, H_0, W_0]``.

    Raises:
        ValueError: the pyramid is empty or gather unknown.
    """
    if not pyramid or gather not in ("mean", "max"):
        raise ValueError(f"Needs at least one image and gather 'mean' or 'max', got {len(pyramid)} and {gather!r}.")
    height, width = pyramid[0].shape[2:]
    result = _logits(model, pyramid[0], hflip)
    for images in pyramid[1:]:
        logits = resize_logits(_logits(model, images, hflip), height, width)
        result = (logits + result) / 2 if gather == "mean" else torch.maximum(result, logits)
    return result


def _logits(model: Callable[[Tensor], Tensor], images: Tensor, hflip: bool) -> Tensor:
    logits = model(images)
    return torch.maximum(logits, model(images.flip(-1)).flip(-1)) if hflip else logits
