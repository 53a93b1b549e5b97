"""``decoder_level``: a whole level of the decoder in one call, norms folded."""

import torch
from torch import Tensor

from hyperseg.ops import reference
from hyperseg.ops._arguments import (
    call,
    check_choice,
    check_grid,
    check_map,
    check_patch_weights,
    check_positive,
    check_reflection,
    check_same_kind,
    check_vector,
)
from hyperseg.ops._layout import empty_map, level_parameters
from hyperseg.ops._registry import define, define_backward
from hyperseg.ops.generate_weights import check_generator
from hyperseg.ops.patch_inverted_residual import HALOS, block_flops

_NAME = "decoder_level"
ARGUMENTS = (
    "Tensor skip, Tensor? previous, Tensor source, Tensor? generator, Tensor bias, int offset, int groups, "
    "int out_channels, int hidden, str halo"
)


def _check(*args):
    check_level(_NAME, *args)


def check_level(operator, skip, previous, source, generator, bias, offset, groups, out_channels, hidden, halo):
    check_map(operator, "skip", skip)
    if previous is not None:
        check_map(operator, "previous", previous)
        if previous.shape[0] != skip.shape[0]:
            raise ValueError(
                f"{operator}: skip has {skip.shape[0]} images but previous {previous.shape[0]}; they must agree."
            )
    check_positive(operator, out_channels=out_channels)
    check_choice(operator, "halo", halo, HALOS)
    if hidden < 0:
        raise ValueError(f"{operator}: hidden must be 0 (a 1x1 level) or more, got {hidden}.")
    check_same_kind(operator, skip=skip, previous=previous, source=source, generator=generator, bias=bias)
    check_vector(
        operator, "bias", bias, 2 * hidden + out_channels, "expand | depthwise | project, or just out_channels"
    )
    if hidden:
        check_reflection(operator, skip, (1, 1))
    channels = 2 + skip.shape[1] + (0 if previous is None else previous.shape[1])
    parameters = level_parameters(channels, hidden, out_channels)
    if generator is None:
        if (offset, groups) != (0, 1):
            raise ValueError(f"{operator}: offset and groups are for a generator, which was not given.")
        check_patch_weights(
            operator, source, skip, parameters, f"the parameters of {channels} -> {out_channels} channels"
        )
        return
    check_map(operator, "source", source, "[N, C, fh, fw], the signal")
    if source.shape[0] != skip.shape[0]:
        raise ValueError(
            f"{operator}: the signal has {source.shape[0]} images but skip {skip.shape[0]}; they must agree."
        )
    check_generator(operator, source, generator, offset, groups, parameters)
    check_grid(operator, source.shape[2], source.shape[3], skip)


def _fake(skip, previous, source, generator, bias, offset, groups, out_channels, hidden, halo):
    return empty_map(skip, out_channels)


def level_flops(
    skip, previous, source, generator, bias, offset, groups, out_channels, hidden, halo, *, out_shape=None, **kwargs
):
    n, c, h, w = skip
    channels = 2 + c + (previous[1] if previous is not None else 0)
    grid = (n, *source[1:3]) if generator is None else (n, *source[2:4])
    total = 0
    if generator is not None:
        size = level_parameters(channels, hidden, out_channels)
        total += 2 * n * grid[1] * grid[2] * size * generator[1]
    if hidden:
        return total + block_flops((n, channels, h, w), grid, hidden, out_channels, halo)
    return total + 2 * n * h * w * channels * out_channels


def _setup_context(ctx, inputs, output):
    *tensors, ctx.offset, ctx.groups, ctx.out_channels, ctx.hidden, ctx.halo = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad):
    tensors = ctx.saved_tensors
    gradients = _operator_backward(grad, *tensors, ctx.offset, ctx.groups, ctx.out_channels, ctx.hidden, ctx.halo)
    given = [None if t is None else g for t, g in zip(tensors, gradients, strict=True)]
    return *given, None, None, None, None, None


define(_NAME, ARGUMENTS, "Tensor", reference=reference.decoder_level, check=_check, fake=_fake, flops=level_flops)
_operator_backward = define_backward(
    _NAME,
    ARGUMENTS,
    "(Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference=reference.decoder_level,
    differentiable=(0, 1, 2, 3, 4),
    setup_context=_setup_context,
    backward=_backward,
)


def decoder_level(
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
    """One level of the decoder, norms folded: upsample, concatenate, coordinates, generate weights, dynamic block.

    The block's input is, on channels: two coordinates from -1 to 1, ``skip``, and ``previous`` bilinearly resized to
    skip's size (SPEC F). A 1x1 level (``hidden=0``) ends in ReLU; an inverted residual is as
    :func:`patch_inverted_residual`. Paper section 3.3; SPEC E, F, G.

    Args:
        skip: ``[N, C, H, W]``, the encoder's feature at this level.
        previous: ``[N, D, h, w]``, the output of the level before; None at the first.
        source: the weights ``[N, fh, fw, P]`` or, with ``generator``, the signal ``[N, S, fh, fw]`` to make them from.
            H and W are multiples of fh and fw.
        bias: ``[2 * hidden + out_channels]``, the folded norms' shifts.
        generator, offset, groups: as in :func:`generate_weights`; norm scales are folded into the generator's rows.

    Returns:
        ``[N, out_channels, H, W]``, in channels-last memory if skip is.

    Raises:
        ValueError, TypeError: the shapes, dtypes or devices do not fit together.
    """
    return call(
        torch.ops.hyperseg.decoder_level.default,
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
