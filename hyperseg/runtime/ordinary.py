"""Ordinary tensors at both ends of an engine, which computes in inference mode on plain tensors."""

import torch
from torch import Tensor


def without_subclass(x: Tensor) -> Tensor:
    """Return ``x`` as a plain tensor in the same memory; subclasses with a dispatcher of their own stay.

    Operations on a subclass, such as torchvision's images, would return that subclass.
    """
    kind = type(x)
    if kind is Tensor or kind.__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return x
    return x.as_subclass(Tensor)


def ordinary(x: Tensor) -> Tensor:
    """Return a tensor in the same memory that is no inference tensor, outside inference mode.

    Inference tensors can be neither written to nor saved for a backward pass there. To compute in no_grad mode instead
    would cost two more Python calls per operator, since autograd formulas are registered in Python.
    """
    if not x.is_inference():
        return x
    return torch.empty(0, dtype=x.dtype, device=x.device).set_(x)  # type: ignore[call-overload]
