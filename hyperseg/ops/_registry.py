"""Registration of an operator as ``torch.ops.hyperseg.<name>``: schema, checks, fake, autograd, FLOPs, reference.

Schemas are defined here in Python, so the operators exist whether or not the extension was built. The implementation of
an operator selects a backend at run time, on real tensors (``ops/backends/dispatch.py``). So ``torch.compile``,
``torch.export`` and CUDA graphs see one opaque operator.
"""

import functools
from collections.abc import Callable
from operator import or_
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from hyperseg._distributed import all_reduce
from hyperseg.ops.backends import reference as reference_backend
from hyperseg.ops.backends.dispatch import select

LIBRARY = torch.library.Library("hyperseg", "DEF")
OPERATORS: list[str] = []

# The extension calls this operator between two launches: torch's collectives have other schemas in each version.
LIBRARY.define("all_reduce(Tensor values, str group) -> Tensor")
LIBRARY.impl("all_reduce", all_reduce, "CompositeExplicitAutograd")

# One dispatch key per device type that has autocast.
_AUTOCAST_KEYS = [key for name, key in torch._C.DispatchKey.__members__.items() if name.startswith("Autocast")]
_AUTOCAST = functools.reduce(or_, map(torch._C.DispatchKeySet, _AUTOCAST_KEYS))


def define(
    name: str,
    arguments: str,
    returns: str,
    *,
    reference: Callable[..., Any],
    check: Callable[..., None],
    fake: Callable[..., Any],
    check_values: Callable[..., None] | None = None,
    flops: Callable[..., int] | None = None,
) -> Callable[..., Any]:
    """Register an operator and return it.

    Args:
        arguments, returns: its schema.
        reference: its definition in plain PyTorch (``hyperseg/ops/reference.py``).
        check: raises ValueError or TypeError, with a message, on arguments outside the contract. Runs on every call.
        fake: returns the empty output(s), with the strides that every backend must return.
        check_values: raises ValueError for values outside the contract where to read them costs no synchronisation.
            It takes the output, in which such values may show, and the arguments. Does not run on fake tensors.
        flops: shapes -> floating-point operations, two per multiply-add, as ``FlopCounterMode`` counts them.
    """
    _define_schema(name, arguments, returns)
    packet = getattr(torch.ops.hyperseg, name)
    required = [(i, a.name) for i, a in enumerate(packet.default._schema.arguments) if str(a.type) == "Tensor"]

    def check_all(*args: Any) -> None:
        for i, argument in required:
            if args[i] is None:  # PyTorch passes None on as an undefined tensor
                raise TypeError(f"{name}: {argument} must be a tensor, got None.")
        check(*args)

    def implementation(*args: Any) -> Any:
        check_all(*args)
        return select(name, args)(*args)

    def implementation_with_values(*args: Any) -> Any:
        output = implementation(*args)
        check_values(output, *args)  # type: ignore[misc]
        return output

    def checked_fake(*args: Any) -> Any:
        check_all(*args)
        return fake(*args)

    _implement(name, implementation_with_values if check_values else implementation, checked_fake, reference)
    if flops is not None:
        register_flop_formula(packet)(flops)
    return packet.default


def define_backward(
    name: str,
    arguments: str,
    gradients: str,
    *,
    reference: Callable[..., Any],
    differentiable: tuple[int, ...],
    setup_context: Callable[..., None],
    backward: Callable[..., Any],
) -> Callable[..., Any]:
    """Register ``<name>_backward``, attach it to operator ``name``, and return it.

    Args:
        arguments: the schema after the first argument, ``Tensor grad`` (the gradient of the operator's first output).
            Mostly the operator's own arguments, in some cases with outputs of its forward pass.
        gradients: the schema of the output: one entry per position in ``differentiable``, in that order. An absent
            optional tensor gets an empty gradient.
        reference: a function of ``arguments``, whose first output is differentiated by ``torch.func.vjp``.
        differentiable: the positions in ``arguments`` that get gradients.
        setup_context, backward: as ``torch.library.register_autograd`` takes them; ``backward`` calls the operator
            that is returned here.
    """
    operator = f"{name}_backward"

    def implementation(*args: Any) -> Any:
        return select(operator, args)(*args)

    def fake(grad: Tensor, *args: Any) -> Any:
        results = [_empty_like(args[i], grad) for i in differentiable]
        return tuple(results) if len(results) > 1 else results[0]

    _define_schema(operator, f"Tensor grad, {arguments}", gradients)
    _implement(operator, implementation, fake, reference_backend.GradientOf(reference, differentiable))
    torch.library.register_autograd(f"hyperseg::{name}", backward, setup_context=setup_context, lib=LIBRARY)
    # Otherwise a second derivative would be the part of the result that autograd happens to see.
    refuse_derivatives(operator, "second derivatives are not implemented; differentiate the function of")
    return getattr(torch.ops.hyperseg, operator).default


def refuse_derivatives(operator: str, reason: str) -> None:
    """Raise NotImplementedError in the backward pass: ``reason``, and the module that can be differentiated."""

    def backward(ctx: Any, *gradients: Tensor) -> None:
        raise NotImplementedError(f"{operator}: {reason} hyperseg.ops.reference.")

    torch.library.register_autograd(f"hyperseg::{operator}", backward, lib=LIBRARY)


def _define_schema(name: str, arguments: str, returns: str) -> None:
    LIBRARY.define(f"{name}({arguments}) -> {returns}", tags=[torch.Tag.pt2_compliant_tag])


def _implement(
    name: str, implementation: Callable[..., Any], fake: Callable[..., Any], reference: Callable[..., Any]
) -> None:
    LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    for key in _AUTOCAST_KEYS:
        LIBRARY.impl(name, _without_autocast(getattr(torch.ops.hyperseg, name).default), key.name)
    torch.library.register_fake(f"hyperseg::{name}", fake, lib=LIBRARY)
    reference_backend.SUPPORTED[name] = reference
    OPERATORS.append(name)


def _without_autocast(overload: Callable[..., Any]) -> Callable[..., Any]:
    """Return the kernel for calls inside autocast: it computes, as outside, in the dtype of the arguments.

    Otherwise the operations inside the reference would be cast, and its outputs too.
    """

    def kernel(*args: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
            return overload(*args)

    return kernel


def _empty_like(argument: Tensor | list[Tensor] | None, grad: Tensor) -> Tensor | list[Tensor]:
    if argument is None:
        return grad.new_empty(0)
    if isinstance(argument, list):
        return [a.new_empty(a.shape) for a in argument]
    return argument.new_empty(argument.shape)
