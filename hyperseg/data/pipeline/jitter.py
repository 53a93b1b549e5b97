"""Colour changes of samples, from their random numbers. `photometry.py` applies them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hyperseg.data.pipeline.recipes import ColorJitter
from hyperseg.data.pipeline.samples import Draws

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


class JitterParameters(NamedTuple):
    """Colour changes of a batch.

    factors: float32 [N, 4], of brightness, contrast and saturation, and the shift of hue.
    order: int64 [N, 4], the kinds of change in the order in which they are applied.
    """

    factors: Tensor
    order: Tensor


def jitter_parameters(jitter: ColorJitter, draws: Sequence[Draws]) -> JitterParameters:
    """Return the colour changes of samples with these random numbers, in host memory."""
    factors, orders = [], []
    for draw in draws:
        row = []
        for value, u in (
            (jitter.brightness, draw.brightness),
            (jitter.contrast, draw.contrast),
            (jitter.saturation, draw.saturation),
        ):
            low = max(0.0, 1.0 - value)
            row.append(low + u * (1.0 + value - low))
        factors.append([*row, (2 * draw.hue - 1) * jitter.hue])
        orders.append(_nth_order(int(draw.color_order * 24)))
    return JitterParameters(torch.tensor(factors), torch.tensor(orders))


def _nth_order(number: int) -> list[int]:
    """Return one of the 24 orders of four kinds of change."""
    left, order = list(range(4)), []
    for base in (6, 2, 1, 1):
        position, number = divmod(number, base)
        order.append(left.pop(position))
    return order
