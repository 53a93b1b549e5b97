"""``decoder_level_argmax``: the decoder's last level where it ends at full size, straight to labels."""

import torch
from torch import Tensor

from hyperseg.ops import reference
from hyperseg.ops._arguments import call
from hyperseg.ops._registry import define
from hyperseg.ops.decoder_level import ARGUMENTS, check_level, level_flops

_NAME = "decoder_level_argmax"


def _check(*args):
    check_level(_NAME, *args)
    out_channels = args[7]
    if out_channels > 256:
        raise ValueError(f"{_NAME}: labels are uint8, so out_channels can be 256 at most, got {out_channels}.")


def _fake(skip, *args):
    n, _, h, w = skip.shape
    return skip.new_empty((n, h, w), dtype=torch.uint8)


define(
    _NAME, ARGUMENTS, "Tensor", reference=reference.decoder_level_argmax, check=_check, fake=_fake, flops=level_flops
)


def decoder_level_argmax(
    skip: Tensor,
    previous: Tensor | None,
    source: Tensor,
    bias: Tensor,
    *,
    out_channels: int,
    hidden: int = 0,
    halo: str = "own",
    generator: Tensor | None = None,
    offset: int = 0,
    groups: int = 1,
) -> Tensor:
    """The class of each pixel of :func:`decoder_level`'s answer, which need never be in memory.

    For networks whose last level is as large as the image. The arguments are those of :func:`decoder_level`, with
    256 outputs at most.

    Returns:
        uint8 ``[N, H, W]``; of equal scores, rounded to the dtype of skip, the lowest class; a NaN counts as the
        largest score.

    Raises:
        ValueError, TypeError: more than 256 outputs, or the shapes, dtypes or devices do not fit together.
    """
    return call(
        torch.ops.hyperseg.decoder_level_argmax.default,
        skip,
        previous,
        source,
        generator,
        bias,
        offset,
        groups,
        out_channels,
        hidden,
        halo,
    )
