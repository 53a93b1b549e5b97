"""Pixels on the device: flip, colour jitter, normalisation, memory format and type, for a whole batch at once.

uint8 [N, H, W, 3] in, [N, 3, H, W] in channels-last memory out. The colour changes are those of torchvision's
ColorJitter on float images, clamped to [0, 1] after each. Each sample has its own factors and its own order.
"""

import torch
from torch import Tensor

from hyperseg.data.pipeline.jitter import CONTRAST, HUE, SATURATION, JitterParameters
from hyperseg.models.sizes import pixel_affine, scale_pixels

_ROWS = 32  # at a time on a CPU: 400 kB of 1024 pixels, which stay in its cache
_GREY = (0.2989, 0.587, 0.114)  # torchvision's weights


class Photometry:
    """Turns batches of pixels into inputs of a network, on the device that they are on.

    Args:
        mean, std: of RGB in [0, 1], of the network.
        dtype: of the result: float32, or the type of autocast. The arithmetic is float32.
    """

    def __init__(
        self,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.mean, self.std, self.dtype = mean, std, dtype
        self._affines: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def __call__(
        self,
        images: Tensor,
        flip: Tensor | None = None,
        jitter: JitterParameters | None = None,
        inside: Tensor | None = None,
    ) -> Tensor:
        """Return the input of the network.

        Args:
            images: uint8 [N, H, W, 3].
            flip: bool [N], which to mirror; None: none. Mirror labels with :func:`mirror`.
            jitter: None: the colours stay.
            inside: uint8 [N, H, W], 0 for padding whose colours stay, mirrored as `images`; None: all colours change.

        Returns:
            [N, 3, H, W] in channels-last memory.
        """
        if flip is not None:
            images = mirror(images, flip)
            inside = None if inside is None else mirror(inside, flip)
        scale, shift = self._affine(images.device)
        if jitter is None:
            if images.device.type == "cpu":
                return _scale_by_rows(images, scale, shift, self.dtype)
            return scale_pixels(images, scale, shift, self.dtype)
        pixels = images.permute(0, 3, 1, 2).to(torch.float32).div_(255)
        pixels = jitter_colors(pixels, jitter, None if inside is None else inside[:, None] != 0)
        return scale_pixels(pixels.permute(0, 2, 3, 1), scale * 255, shift, self.dtype)

    def _affine(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._affines:  # copied once: a copy from ordinary host memory waits for the device
            self._affines[device] = pixel_affine(self.mean, self.std, device)
        return self._affines[device]


def _scale_by_rows(images: Tensor, scale: Tensor, shift: Tensor, dtype: torch.dtype) -> Tensor:
    """Compute `scale_pixels` a few rows at a time, so that intermediate values stay in the cache."""
    out = torch.empty(images.shape, dtype=dtype)
    for target, rows in zip(out.flatten(0, 1).split(_ROWS), images.flatten(0, 1).split(_ROWS), strict=True):
        target.copy_(scale_pixels(rows[None], scale, shift, dtype)[0].permute(1, 2, 0))
    return out.permute(0, 3, 1, 2)


def mirror(batch: Tensor, flip: Tensor) -> Tensor:
    """Mirror those samples of a batch [N, H, W, ...] whose `flip` (bool [N]) is True, without synchronisation."""
    if batch.device.type == "cpu":  # where `torch.where` over bytes costs more than all else
        mirrored = batch.clone()
        for sample in flip.nonzero()[:, 0].tolist():
            mirrored[sample] = batch[sample].flip(1)
        return mirrored
    return torch.where(flip.view(-1, *[1] * (batch.dim() - 1)), batch.flip(2), batch)


def jitter_colors(images: Tensor, jitter: JitterParameters, inside: Tensor | None = None) -> Tensor:
    """Change the colours of float images [N, 3, H, W] in [0, 1]; the arguments are not changed.

    Brightness, contrast and saturation are all ``a x + (1 - a) other``, where `other` is black, the image's mean or the
    pixel's grey. So one expression per step applies them to all samples. Hue is computed for those whose turn it is.

    Args:
        jitter: factors and orders, in host memory, so that nothing has to wait for the device.
        inside: bool [N, 1, H, W]; other pixels do not change, and do not count for the mean of contrast.
    """
    factors, order = jitter
    own = torch.where(order == HUE, 1.0, factors.gather(1, order))
    steps = torch.stack([own, (order == CONTRAST).float(), (order == SATURATION).float()]).transpose(1, 2)
    steps = steps.contiguous().to(images.device, non_blocking=True)  # [3, step, N]
    turns, hue_samples = (order == HUE).int().argmax(1).sort()
    hue_shifts = factors[hue_samples, HUE].to(images.device, non_blocking=True)
    hue_index = hue_samples.to(images.device, non_blocking=True)
    bounds = torch.searchsorted(turns, torch.arange(5)).tolist()
    with_hue = bool((factors[:, HUE] != 0).any())

    changed = images
    for step in range(4):
        a, contrast, saturation = steps[:, step, :, None, None, None]
        grey = _grey(changed)
        mean = _mean(grey, inside)
        other = grey * saturation + mean[:, None, None, None] * contrast
        changed = (changed * a).add_(other * (1 - a)).clamp_(0, 1)
        turn = slice(bounds[step], bounds[step + 1])
        if with_hue and turn.start < turn.stop:
            index = hue_index[turn]
            changed.index_copy_(0, index, shift_hue(changed.index_select(0, index), hue_shifts[turn]))
    return changed if inside is None else torch.where(inside, changed, images)


def _mean(values: Tensor, inside: Tensor | None) -> Tensor:
    """Return the mean [N] of maps [N, 1, H, W], or of those pixels of them that are inside."""
    if inside is None:
        return values.mean((1, 2, 3))
    return (values * inside).sum((1, 2, 3)) / inside.sum((1, 2, 3)).clamp_(min=1)


def _grey(images: Tensor) -> Tensor:
    red, green, blue = images.split(1, 1)
    return (red * _GREY[0]).add_(green, alpha=_GREY[1]).add_(blue, alpha=_GREY[2])


def shift_hue(images: Tensor, shifts: Tensor) -> Tensor:
    """Turn the hue of float images [N, 3, H, W] by shifts [N], as shares of the circle.

    With hue h, value v (largest channel) and chroma c (largest minus smallest), channel n of the result is
    ``v - c clamp(min(k, 4 - k), 0, 1)`` where ``k = (n + 6 h) mod 6`` and n is 5 for red, 3 for green, 1 for blue.
    """
    red, green, blue = images.split(1, 1)
    value, low = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    chroma = value - low
    divisor = torch.where(chroma == 0, 1.0, chroma)
    sixths = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    sixths = sixths + 6 * shifts.view(-1, 1, 1, 1)
    channel = (5 - 2 * torch.arange(3, device=images.device)).view(1, 3, 1, 1)
    k = torch.remainder(channel + sixths, 6)
    return value - chroma * torch.minimum(k, 4 - k).clamp_(0, 1)
