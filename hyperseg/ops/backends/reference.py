"""The reference backend: the definitions of ``hyperseg/ops/reference.py``, and their gradients by torch.func."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from hyperseg.ops.backends.backend import Backend

# Filled by ``define`` and ``define_backward`` (hyperseg/ops/_registry.py): every operator names its own definition.
SUPPORTED: dict[str, Callable[..., Any]] = {}

REFERENCE = Backend("reference", "plain PyTorch, on any device; defines the result", SUPPORTED)

Gradient = Tensor | list[Tensor]


def gradient_of(function: Callable[..., Any], differentiable: tuple[int, ...]) -> Callable[..., Any]:
    """Return ``(grad, *args) -> gradients`` of the first output of ``function(*args)``, by ``torch.func.vjp``.

    Args:
        differentiable: the positions in ``args`` that get a gradient: a fresh, contiguous tensor, as kernels return
            it. An absent optional tensor gets an empty one.
    """

    def backward(grad: Tensor, *args: Any) -> Any:
        given = [i for i in differentiable if args[i] is not None]

        def forward(*values: Any) -> Tensor:
            filled = list(args)
            for i, value in zip(given, values, strict=True):
                filled[i] = value
            out = function(*filled)
            return out[0] if isinstance(out, tuple) else out

        with _differentiation_enabled():
            gradients = torch.func.vjp(forward, *[_detached(args[i]) for i in given])[1](grad)
        found = dict(zip(given, gradients, strict=True))
        results = [_like(found[i], args[i]) if i in found else grad.new_empty(0) for i in differentiable]
        return tuple(results) if len(results) > 1 else results[0]

    return backward


@contextlib.contextmanager
def _differentiation_enabled() -> Iterator[None]:
    """Let torch.func differentiate inside an operator.

    A dispatch mode (FlopCounterMode, opcheck) calls operators with torch.func's dispatch keys excluded. Without those
    keys torch.func would pass its tensor wrappers to kernels that cannot handle them.
    """
    needed = ("FuncTorchDynamicLayerFrontMode", "FuncTorchDynamicLayerBackMode", "FuncTorchGradWrapper")
    excluded = torch._C._dispatch_tls_local_exclude_set()
    for key in needed:
        excluded = excluded - torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))
    with (
        torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), excluded),
        torch.enable_grad(),
    ):
        yield


def _detached(value: Gradient) -> Gradient:
    return [v.detach() for v in value] if isinstance(value, list) else value.detach()


def _like(gradient: Gradient, argument: Gradient) -> Gradient:
    if isinstance(argument, list):
        return [_fresh(g, a) for g, a in zip(gradient, argument, strict=True)]
    assert isinstance(gradient, Tensor)
    return _fresh(gradient, argument)


def _fresh(gradient: Tensor, argument: Tensor) -> Tensor:
    return gradient.to(argument.dtype).clone(memory_format=torch.contiguous_format)
