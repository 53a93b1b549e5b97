"""Frames that look like something, and random weights that behave like trained ones. All seeded."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from hyperseg.models import HyperSeg, sizes


def photograph(height: int, width: int, generator: torch.Generator) -> torch.Tensor:
    """One uint8 frame [H, W, 3]: smooth structure at every scale, flat regions with hard edges, sensor noise.

    As in photographs most of it is brightness, and colours vary less.
    """

    def random(rows: int, columns: int) -> torch.Tensor:
        brightness, colour = (torch.randn(1, n, rows, columns, generator=generator) for n in (1, 3))
        return brightness + 0.3 * colour

    image = torch.zeros(1, 3, height, width)
    for octave in range(1, 8):
        grid = random(min(height, 2**octave), min(width, 2 ** (octave + 1)))
        image += F.interpolate(grid, (height, width), mode="bilinear", align_corners=False) * 0.8**octave
    for _ in range(12):
        top, left = (int(torch.randint(0, n, (), generator=generator)) for n in (height, width))
        rows, columns = (int(torch.randint(1, max(2, n // 3), (), generator=generator)) for n in (height, width))
        patch = image[:, :, top : top + rows, left : left + columns]
        patch.mul_(0.3).add_(random(1, 1))
    image += 0.04 * torch.randn(1, 3, height, width, generator=generator)
    image = (image - image.mean()) / image.std()
    return (image[0].permute(1, 2, 0) * 50 + 118).clamp(0, 255).round().to(torch.uint8).contiguous()


def frames(count: int, batch: int, height: int, width: int, seed: int) -> list[torch.Tensor]:
    """`count` different batches [N, H, W, 3] on the CPU; the same on every machine for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.stack([photograph(height, width, generator) for _ in range(batch)]) for _ in range(count)]


def normalise(
    batch: torch.Tensor, mean: Sequence[float] | torch.Tensor, std: Sequence[float] | torch.Tensor
) -> torch.Tensor:
    """uint8 [N, H, W, 3] -> normalised float32 [N, 3, H, W]."""
    return sizes.normalise(batch, mean, std).contiguous()


@torch.no_grad()
def temper(model: HyperSeg, images: torch.Tensor) -> None:
    """Make a network with synthetic weights as well-conditioned as a trained one, or half precision proves nothing.

    Random generators give weights that differ wildly from patch to patch: the levels' products grow heavy tails, and
    rounding to bfloat16 flips every fourth label whatever the code does. So the generated weights are made smaller, and
    the last norm is set so that every class varies by 1 around 0, which also makes most classes occur.
    """
    signals: list[torch.Tensor] = []
    hook = model.context.register_forward_hook(lambda module, args, signal: signals.append(signal))
    model(images)
    hook.remove()
    for generator in model.decoder.generators:
        generator.mul_(0.07 / signals[0].square().mean().sqrt())
    last = model.decoder.levels[-1].norms[-1]
    last.bias.zero_()
    last.running_mean.zero_()
    scores = model(images)
    mean, std = scores.mean((0, 2, 3)), scores.std((0, 2, 3)).clamp(min=0.1 * scores.std())
    last.weight.div_(std)
    last.bias.copy_(-mean / std)
