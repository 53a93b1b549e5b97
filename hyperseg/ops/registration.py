"""How an operator becomes ``torch.ops.hyperseg.<name>``: schema, checks, fake, autograd, FLOPs, reference backend.

Schemas live here in Python, so the operators exist whether or not the extension was built. One operator is one
contract: its implementation asks :mod:`hyperseg.ops.backends` who serves the call, on real tensors, at run time; that
keeps it a single opaque node for ``torch.compile``, ``torch.export`` and CUDA graphs.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from hyperseg.ops import backends

LIBRARY = torch.library.Library("hyperseg", "DEF")
OPERATORS: list[str] = []

REFERENCE = backends.register(
    backends.Backend("reference", "plain PyTorch, on any device; defines the answer", lambda: [])
)


def define(
    name: str,
    arguments: str,
    returns: str,
    *,
    reference: Callable,
    check: Callable,
    fake: Callable,
    flops: Callable | None = None,
) -> Callable:
    """Register the operator and return it.

    Args:
        arguments, returns: its schema.
        reference: its plain PyTorch definition.
        check: raises ValueError or TypeError, with a sentence, on arguments outside the contract; runs on every call.
        fake: the empty result(s), with the strides that every backend must return.
        flops: shapes -> floating point operations, two a multiply-add, as ``FlopCounterMode`` counts them.
    """

    LIBRARY.define(f"{name}({arguments}) -> {returns}", tags=[torch.Tag.pt2_compliant_tag])
    schema = getattr(torch.ops.hyperseg, name).default._schema
    required = [(i, a.name) for i, a in enumerate(schema.arguments) if str(a.type) == "Tensor"]

    def check_all(*args):
        for i, argument in required:
            if args[i] is None:  # which torch hands on as a tensor that is none
                raise TypeError(f"{name}: {argument} must be a tensor, got None.")
        check(*args)

    def implementation(*args):
        check_all(*args)
        return backends.select(name, *args).function(*args)

    def fake_implementation(*args):
        check_all(*args)
        return fake(*args)

    LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"hyperseg::{name}", fake_implementation, lib=LIBRARY)
    REFERENCE.implementations[name] = backends.Implementation(reference)
    OPERATORS.append(name)
    packet = getattr(torch.ops.hyperseg, name)
    if flops is not None:
        register_flop_formula(packet)(flops)
    return packet.default


def define_backward(
    name: str,
    arguments: str,
    gradients: str,
    *,
    reference: Callable,
    differentiable: tuple[int, ...],
    setup_context: Callable,
    backward: Callable,
) -> Callable:
    """Register ``<name>_backward`` and attach it to operator ``name``.

    Args:
        arguments: the schema behind the first argument, ``Tensor grad`` (of the operator's first output): mostly the
            operator's own arguments, perhaps with outputs that its forward pass has already paid for.
        gradients: the schema of what it returns: one entry for each of ``differentiable``, in that order; an absent
            optional tensor gets an empty one.
        reference: a function of ``arguments``, whose (first) output is differentiated here by ``torch.func.vjp``.
        differentiable: the positions in ``arguments`` that get gradients.
        setup_context, backward: as ``torch.library.register_autograd`` takes them; ``backward`` calls what is returned.
    """
    operator = f"{name}_backward"

    def reference_backward(grad: Tensor, *args):
        wanted = [i for i in differentiable if args[i] is not None]

        def forward(*values):
            filled = list(args)
            for i, value in zip(wanted, values, strict=True):
                filled[i] = value
            out = reference(*filled)
            return out[0] if isinstance(out, tuple) else out

        with differentiating():
            gradients = torch.func.vjp(forward, *[_detached(args[i]) for i in wanted])[1](grad)
        found = dict(zip(wanted, gradients, strict=True))
        results = [_like(found[i], args[i]) if i in found else grad.new_empty(0) for i in differentiable]
        return tuple(results) if len(results) > 1 else results[0]

    def fake(grad: Tensor, *args):
        results = [_empty_like(args[i], grad) for i in differentiable]
        return tuple(results) if len(results) > 1 else results[0]

    LIBRARY.define(f"{operator}(Tensor grad, {arguments}) -> {gradients}", tags=[torch.Tag.pt2_compliant_tag])
    LIBRARY.impl(operator, lambda *args: backends.select(operator, *args).function(*args), "CompositeExplicitAutograd")
    torch.library.register_fake(f"hyperseg::{operator}", fake, lib=LIBRARY)
    torch.library.register_autograd(f"hyperseg::{name}", backward, setup_context=setup_context, lib=LIBRARY)
    refuse_second_derivatives(operator)
    REFERENCE.implementations[operator] = backends.Implementation(reference_backward)
    OPERATORS.append(operator)
    return getattr(torch.ops.hyperseg, operator).default


@contextlib.contextmanager
def differentiating() -> Iterator[None]:
    """Inside an operator: have torch.func differentiate.

    A dispatch mode (FlopCounterMode, opcheck) calls operators with torch.func's dispatch keys excluded; without them it
    would hand its wrappers to kernels that know nothing of them.
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


def refuse_second_derivatives(operator: str) -> None:
    """Without this, differentiating a backward would give whatever part of the answer autograd happens to see."""
    refuse_derivatives(operator, "second derivatives are not implemented; differentiate the function of")


def refuse_derivatives(operator: str, why: str) -> None:
    """Have the backward pass end in a sentence: ``why``, followed by the module that can be differentiated."""

    def backward(ctx, *gradients):
        raise NotImplementedError(f"{operator}: {why} hyperseg.ops.reference.")

    torch.library.register_autograd(f"hyperseg::{operator}", backward, lib=LIBRARY)


def _detached(value: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
    return [v.detach() for v in value] if isinstance(value, list) else value.detach()


def _like(gradient: Tensor | list[Tensor], argument: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
    """Gradients are fresh, contiguous tensors: what the fake promises and what a kernel finds easiest to write."""
    if isinstance(argument, list):
        return [_fresh(g, a) for g, a in zip(gradient, argument, strict=True)]
    assert isinstance(gradient, Tensor)
    return _fresh(gradient, argument)


def _fresh(gradient: Tensor, argument: Tensor) -> Tensor:
    return gradient.to(argument.dtype).clone(memory_format=torch.contiguous_format)


def _empty_like(argument: Tensor | list[Tensor] | None, grad: Tensor) -> Tensor | list[Tensor]:
    if argument is None:
        return grad.new_empty(0)
    if isinstance(argument, list):
        return [a.new_empty(a.shape) for a in argument]
    return argument.new_empty(argument.shape)
