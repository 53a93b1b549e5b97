"""The reference backend: the definitions of ``hyperseg/ops/reference.py``, and their gradients by torch.func."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from hyperseg.ops.backends.backend import Backend

# Filled by ``define`` and ``define_backward`` (hyperseg/ops/_registry.py): every operator names its own definition.
SUPPORTED: dict[str, Callable[..., Any]] = {}

REFERENCE = Backend("reference", "plain PyTorch, on any device; defines the result", SUPPORTED)

Gradient = Tensor | list[Tensor]


class GradientOf:
    """``(grad, *args) -> gradients`` of the first output of ``function(*args)``.

    Each gradient is a fresh, contiguous tensor, as kernels return it. An absent optional tensor gets an empty one.
    """

    def __init__(self, function: Callable[..., Any], differentiable: tuple[int, ...]) -> None:
        """``differentiable``: the positions in ``args`` that get a gradient."""
        self.function, self.differentiable = function, differentiable

    def __call__(self, grad: Tensor, *args: Any) -> Any:
        """By ``torch.func.vjp``, which also works inside an operator."""
        given = [i for i in self.differentiable if args[i] is not None]
        with _differentiation_enabled():
            grad, args = _recordable(grad), tuple(map(_recordable, args))
            values = [_detached(args[i]) for i in given]
            gradients = torch.func.vjp(lambda *v: self._first_output(args, given, v), *values)[1](grad)
        return self._results(grad, args, dict(zip(given, gradients, strict=True)))

    def by_autograd(self, grad: Tensor, *args: Any) -> Any:
        """The same outside of an operator, without ``torch.func``, which imports torch.compile: that takes seconds."""
        given = [i for i in self.differentiable if args[i] is not None]
        values = [_detached(args[i]) for i in given]
        leaves = [t.requires_grad_() for v in values for t in (v if isinstance(v, list) else [v])]
        output = self._first_output(args, given, values)
        found = iter(torch.autograd.grad(output, leaves, grad, allow_unused=True, materialize_grads=True))
        gradients = [[next(found) for _ in v] if isinstance(v, list) else next(found) for v in values]
        return self._results(grad, args, dict(zip(given, gradients, strict=True)))

    def _first_output(self, args: tuple[Any, ...], given: Sequence[int], values: Sequence[Any]) -> Tensor:
        filled = list(args)
        for i, value in zip(given, values, strict=True):
            filled[i] = value
        out = self.function(*filled)
        return out[0] if isinstance(out, tuple) else out

    def _results(self, grad: Tensor, args: tuple[Any, ...], found: dict[int, Gradient]) -> Any:
        results = [_like(found[i], args[i]) if i in found else grad.new_empty(0) for i in self.differentiable]
        return tuple(results) if len(results) > 1 else results[0]


@contextlib.contextmanager
def _differentiation_enabled() -> Iterator[None]:
    """Let torch.func differentiate inside an operator.

    A dispatch mode (FlopCounterMode, opcheck) calls operators with torch.func's dispatch keys excluded. Without those
    keys torch.func would pass its tensor wrappers to kernels that cannot handle them. In inference mode torch 2.11
    would return zeros.
    """
    needed = ("FuncTorchDynamicLayerFrontMode", "FuncTorchDynamicLayerBackMode", "FuncTorchGradWrapper")
    excluded = torch._C._dispatch_tls_local_exclude_set()
    for key in needed:
        excluded = excluded - torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))
    with (
        torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), excluded),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        yield


def _recordable(value: Any) -> Any:
    """Return an argument with copies of the tensors that were made in inference mode, which autograd does not take."""
    if isinstance(value, list):
        return [_recordable(v) for v in value]
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value


def _detached(value: Gradient) -> Gradient:
    return [v.detach() for v in value] if isinstance(value, list) else value.detach()


def _like(gradient: Gradient, argument: Gradient) -> Gradient:
    if isinstance(argument, list):
        return [_fresh(g, a) for g, a in zip(gradient, argument, strict=True)]
    assert isinstance(gradient, Tensor)
    return _fresh(gradient, argument)


def _fresh(gradient: Tensor, argument: Tensor) -> Tensor:
    return gradient.to(argument.dtype).clone(memory_format=torch.contiguous_format)
