"""``generate_weights``: the convolution weights of every patch, generated from the context head's signal."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hyperseg.ops import reference
from hyperseg.ops._arguments import call, check_map, check_positive, check_same_kind
from hyperseg.ops._registry import define, define_backward

_NAME = "generate_weights"
_ARGUMENTS = "Tensor signal, Tensor[] generators, int[] offsets, int[] groups, int[] sizes"


def check_generator(operator: str, signal: Tensor, generator: Tensor, offset: int, groups: int, size: int) -> None:
    """Check one generator against the signal it reads; ``decoder_level`` uses it too."""
    check_positive(operator, groups=groups, size=size)
    if generator.dim() != 2:
        raise ValueError(
            f"{operator}: a generator must be [rows, signal channels / groups], got {list(generator.shape)}."
        )
    check_same_kind(operator, signal=signal, generator=generator)
    rows, width = generator.shape
    if rows % groups:
        raise ValueError(f"{operator}: {rows} generator rows do not divide into {groups} groups.")
    if size > rows:
        raise ValueError(f"{operator}: {size} parameters are asked of a generator with only {rows} rows.")
    if offset < 0 or offset + width * groups > signal.shape[1]:
        raise ValueError(
            f"{operator}: a generator reads signal channels {offset} to {offset + width * groups}, "
            f"but the signal has {signal.shape[1]}."
        )


def _check(signal, generators, offsets, groups, sizes):
    check_map(_NAME, "signal", signal, "[N, C, fh, fw]")
    if not generators or not len(generators) == len(offsets) == len(groups) == len(sizes):
        raise ValueError(
            f"{_NAME}: needs one offset, group count and size for each generator, got {len(generators)} generators, "
            f"{len(offsets)} offsets, {len(groups)} group counts and {len(sizes)} sizes."
        )
    for generator, offset, group, size in zip(generators, offsets, groups, sizes, strict=True):
        check_generator(_NAME, signal, generator, offset, group, size)


def _fake(signal, generators, offsets, groups, sizes):
    n, _, fh, fw = signal.shape
    return signal.new_empty(n, fh, fw, sum(sizes))


def _flops(signal, generators, offsets, groups, sizes, *args, out_shape=None, **kwargs):
    n, _, fh, fw = signal
    return sum(2 * n * fh * fw * size * g[1] for g, size in zip(generators, sizes, strict=True))


def _setup_context(ctx, inputs, output):
    signal, generators, ctx.offsets, ctx.groups, ctx.sizes = inputs
    ctx.save_for_backward(signal, *generators)


def _backward(ctx, grad):
    signal, *generators = ctx.saved_tensors
    d_signal, d_generators = _operator_backward(grad, signal, generators, ctx.offsets, ctx.groups, ctx.sizes)
    return d_signal, d_generators, None, None, None


_operator = define(
    _NAME, _ARGUMENTS, "Tensor", reference=reference.generate_weights, check=_check, fake=_fake, flops=_flops
)
_operator_backward = define_backward(
    _NAME,
    _ARGUMENTS,
    "(Tensor, Tensor[])",
    reference=reference.generate_weights,
    differentiable=(0, 1),
    setup_context=_setup_context,
    backward=_backward,
)


def generate_weights(
    signal: Tensor,
    generators: Tensor | Sequence[Tensor],
    *,
    offsets: int | Sequence[int] = 0,
    groups: int | Sequence[int] = 1,
    sizes: int | Sequence[int] | None = None,
) -> Tensor:
    """Generate the convolution weights of every patch: grouped 1x1 convolutions of the signal, patch-major.

    Generator ``i`` is a 1x1 convolution in ``groups[i]`` groups, without bias, of the signal channels that start at
    ``offsets[i]``; the first ``sizes[i]`` of its outputs are kept (the rest pads it to a multiple of the groups).
    Paper section 3.2; SPEC D.5, E.

    Args:
        signal: ``[N, C, fh, fw]``, floating point.
        generators: one or several of ``[rows, C_i / groups]``, dtype and device of the signal.
        offsets, groups, sizes: one number per generator, or one for all; ``sizes=None`` keeps every row.

    Returns:
        ``[N, fh, fw, sum(sizes)]``: per patch the flat parameters of all generators, concatenated.

    Raises:
        ValueError, TypeError: the shapes, dtypes or devices do not fit together.
    """
    if isinstance(generators, Tensor):
        generators = [generators]
    generators = list(generators)
    if sizes is None:
        sizes = [g.shape[0] for g in generators if isinstance(g, Tensor) and g.dim()]
    lists = [[v] * len(generators) if isinstance(v, int) else v for v in (offsets, groups, sizes)]
    return call(torch.ops.hyperseg.generate_weights.default, signal, generators, *lists)
