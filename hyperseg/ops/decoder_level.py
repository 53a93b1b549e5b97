"""``decoder_level``: a whole level of the decoder in one call, norms folded; ``decoder_level_argmax``: its labels."""

from typing import Any, NamedTuple

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

_LEVEL, _ARGMAX = "decoder_level", "decoder_level_argmax"
_ARGUMENTS = (
    "Tensor skip, Tensor? previous, Tensor? signal, Tensor? generator, Tensor? weights, Tensor bias, int offset, "
    "int groups, int out_channels, int hidden, str halo"
)
_TENSORS = 6  # the first arguments, all of which get gradients


class LevelArguments(NamedTuple):
    """The arguments of ``decoder_level`` in the order of its schema: ``LevelArguments(*args).hidden``."""

    skip: Tensor
    previous: Tensor | None
    signal: Tensor | None
    generator: Tensor | None
    weights: Tensor | None
    bias: Tensor
    offset: int
    groups: int
    out_channels: int
    hidden: int
    halo: str

    @property
    def in_channels(self) -> int:
        """Input channels of the level's block: coordinates, skip, previous."""
        return 2 + self.skip.shape[1] + (0 if self.previous is None else self.previous.shape[1])

    @property
    def parameters(self) -> int:
        """Weights per patch."""
        return level_parameters(self.in_channels, self.hidden, self.out_channels)


def _check(operator: str, a: LevelArguments) -> None:
    check_map(operator, "skip", a.skip)
    if a.previous is not None:
        check_map(operator, "previous", a.previous)
        if a.previous.shape[0] != a.skip.shape[0]:
            raise ValueError(
                f"{operator}: skip has {a.skip.shape[0]} images but previous {a.previous.shape[0]}; they must agree."
            )
    check_positive(operator, out_channels=a.out_channels)
    check_choice(operator, "halo", a.halo, HALOS)
    if a.hidden < 0:
        raise ValueError(f"{operator}: hidden must be 0 (a 1x1 level) or more, got {a.hidden}.")
    check_same_kind(
        operator,
        skip=a.skip,
        previous=a.previous,
        signal=a.signal,
        generator=a.generator,
        weights=a.weights,
        bias=a.bias,
    )
    check_vector(
        operator, "bias", a.bias, 2 * a.hidden + a.out_channels, "expand | depthwise | project, or just out_channels"
    )
    if a.hidden:
        check_reflection(operator, a.skip, (1, 1))
    if (a.signal is None) == (a.weights is None):
        given = "neither" if a.signal is None else "both"
        raise ValueError(f"{operator}: give either signal and generator, or weights; got {given}.")
    if a.weights is not None:
        if a.generator is not None or (a.offset, a.groups) != (0, 1):
            raise ValueError(f"{operator}: generator, offset and groups are for a signal, which was not given.")
        channels = a.in_channels
        parameters = level_parameters(channels, a.hidden, a.out_channels)
        meaning = f"the parameters of {channels} -> {a.out_channels} channels"
        check_patch_weights(operator, a.weights, a.skip, parameters, meaning)
        return
    assert a.signal is not None
    if a.generator is None:
        raise ValueError(f"{operator}: a signal needs a generator to make weights from it, got None.")
    check_map(operator, "signal", a.signal, "[N, C, fh, fw]")
    if a.signal.shape[0] != a.skip.shape[0]:
        raise ValueError(
            f"{operator}: the signal has {a.signal.shape[0]} images but skip {a.skip.shape[0]}; they must agree."
        )
    check_generator(operator, a.signal, a.generator, a.offset, a.groups, a.parameters)
    check_grid(operator, a.signal.shape[2], a.signal.shape[3], a.skip)


def _check_level(*args: Any) -> None:
    _check(_LEVEL, LevelArguments(*args))


def _check_argmax(*args: Any) -> None:
    level = LevelArguments(*args)
    _check(_ARGMAX, level)
    if level.out_channels > 256:
        raise ValueError(f"{_ARGMAX}: labels are uint8, so out_channels can be 256 at most, got {level.out_channels}.")


def _fake_level(*args: Any) -> Tensor:
    level = LevelArguments(*args)
    return empty_map(level.skip, level.out_channels)


def _fake_argmax(skip: Tensor, *args: Any) -> Tensor:
    n, _, h, w = skip.shape
    return skip.new_empty((n, h, w), dtype=torch.uint8)


def _flops(
    skip, previous, signal, generator, weights, bias, offset, groups, out_channels, hidden, halo, *, out_shape=None,
    **kwargs,
):  # fmt: skip
    n, c, h, w = skip
    channels = 2 + c + (previous[1] if previous is not None else 0)
    total = 0
    if weights is None:
        fh, fw = signal[2:4]
        total += 2 * n * fh * fw * level_parameters(channels, hidden, out_channels) * generator[1]
    else:
        fh, fw = weights[1:3]
    if hidden:
        return total + block_flops((n, channels, h, w), (n, fh, fw), hidden, out_channels, halo)
    return total + 2 * n * h * w * channels * out_channels


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:_TENSORS])
    ctx.constants = inputs[_TENSORS:]


def _backward(ctx, grad):
    tensors = ctx.saved_tensors
    gradients = _operator_backward(grad, *tensors, *ctx.constants)
    given = [None if t is None else g for t, g in zip(tensors, gradients, strict=True)]
    return *given, *[None] * len(ctx.constants)


define(
    _LEVEL,
    _ARGUMENTS,
    "Tensor",
    reference=reference.decoder_level,
    check=_check_level,
    fake=_fake_level,
    flops=_flops,
)
_operator_backward = define_backward(
    _LEVEL,
    _ARGUMENTS,
    f"({', '.join(['Tensor'] * _TENSORS)})",
    reference=reference.decoder_level,
    differentiable=tuple(range(_TENSORS)),
    setup_context=_setup_context,
    backward=_backward,
)
define(
    _ARGMAX,
    _ARGUMENTS,
    "Tensor",
    reference=reference.decoder_level_argmax,
    check=_check_argmax,
    fake=_fake_argmax,
    flops=_flops,
)


def decoder_level(
    skip: Tensor,
    previous: Tensor | None,
    *,
    signal: Tensor | None = None,
    generator: Tensor | None = None,
    weights: Tensor | None = None,
    bias: Tensor,
    offset: int = 0,
    groups: int = 1,
    out_channels: int,
    hidden: int = 0,
    halo: str = "own",
) -> Tensor:
    """One level of the decoder, norms folded: upsample, concatenate, coordinates, generate weights, dynamic block.

    The block's input is, on channels: two coordinates from -1 to 1, ``skip``, and ``previous`` bilinearly resized to
    skip's size (SPEC F). A 1x1 level (``hidden=0``) ends in ReLU; an inverted residual is as
    :func:`patch_inverted_residual`. The weights are given, or generated from the signal in this call. Paper section
    3.3; SPEC E, F, G.

    Args:
        skip: ``[N, C, H, W]``, floating point: the encoder's feature at this level. H and W are multiples of fh, fw.
        previous: ``[N, D, h, w]``, the output of the previous level; None at the first.
        signal, generator, offset, groups: ``[N, S, fh, fw]`` and the rest as in :func:`generate_weights`. The norms'
            scales are folded into the generator's rows.
        weights: ``[N, fh, fw, P]``, the norms' scales folded in, instead of signal and generator.
        bias: ``[2 * hidden + out_channels]``, the folded norms' shifts.
        out_channels: channels of the output.
        hidden: hidden channels of the inverted residual; 0 for a 1x1 level.
        halo: ``"own"`` or ``"neighbour"``, see :func:`patch_inverted_residual`.

    Returns:
        ``[N, out_channels, H, W]``, in channels-last memory if skip is.

    Raises:
        ValueError, TypeError: neither or both of signal and weights are given, or shapes, dtypes or devices do not fit
            together.
    """
    args = (skip, previous, signal, generator, weights, bias, offset, groups, out_channels, hidden, halo)
    return call(torch.ops.hyperseg.decoder_level.default, *args)


def decoder_level_argmax(
    skip: Tensor,
    previous: Tensor | None,
    *,
    signal: Tensor | None = None,
    generator: Tensor | None = None,
    weights: Tensor | None = None,
    bias: Tensor,
    offset: int = 0,
    groups: int = 1,
    out_channels: int,
    hidden: int = 0,
    halo: str = "own",
) -> Tensor:
    """The class of each pixel of :func:`decoder_level`'s output, which a fused kernel never writes to memory.

    For networks whose last level has the image's size. The arguments are those of :func:`decoder_level`, with at most
    256 output channels. It has no gradient.

    Returns:
        uint8 ``[N, H, W]``; of equal scores, rounded to the dtype of skip, the lowest class; NaN counts as the largest
        score.

    Raises:
        ValueError, TypeError: more than 256 output channels, or as :func:`decoder_level`.
    """
    args = (skip, previous, signal, generator, weights, bias, offset, groups, out_channels, hidden, halo)
    return call(torch.ops.hyperseg.decoder_level_argmax.default, *args)
