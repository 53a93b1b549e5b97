"""Sums over the processes of a group, as operators and norms need them.

A group is given by its name, a string, so that it can be an argument of an operator and be copied and stored with a
module: ``ProcessGroup.group_name``. The name ``""`` stands for this process alone.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup  # some builds of torch do not have it


def all_reduce(values: Tensor, group: str) -> Tensor:
    """Return the sum of ``values`` over the processes of a group, without gradient.

    By functional collectives: they take names of groups, ``torch.compile`` traces them, and on a GPU the current stream
    waits for the sum, not the host.
    """
    collectives = torch.ops._c10d_functional
    return collectives.wait_tensor(collectives.all_reduce(values, "sum", group))


class _AllReduce(torch.autograd.Function):
    """The derivative of a sum over processes is the sum of the processes' gradients."""

    @staticmethod
    def forward(values: Tensor, group: str) -> Tensor:
        return all_reduce(values, group)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, str], output: Tensor) -> None:
        ctx.group = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return all_reduce(grad.contiguous(), ctx.group), None


def differentiable_all_reduce(values: Tensor, group: str) -> Tensor:
    """Return the sum of ``values`` over the processes of a group.

    The gradient is that of the sum of all processes' losses. Each process must run the backward pass.
    """
    return _AllReduce.apply(values, group)


def name_of_group(group: "ProcessGroup | str | None") -> str:
    """Return the name of a process group, ``""`` if it is this process alone.

    Args:
        group: a process group or the name of one; None for the default group, if there is one.

    Raises:
        ValueError: this process is not in the group.
    """
    found: Any = group
    if group is None:
        if not (distributed.is_available() and distributed.is_initialized()):
            return ""
        found = distributed.group.WORLD
    elif isinstance(group, str):
        found = _resolve(group) if group else None
    elif found == distributed.GroupMember.NON_GROUP_MEMBER:
        raise ValueError("this process is not in the process group.")
    return "" if found is None or found.size() == 1 else found.group_name


def check_group(operator: str, group: str) -> None:
    """Check that this process is in a group of this name, or that the name is empty.

    Raises:
        ValueError: it is in none; the message begins with the operator.
    """
    if group:
        try:
            _resolve(group)
        except ValueError as error:
            raise ValueError(f"{operator}: {error}") from None


def _resolve(name: str) -> Any:
    resolve: Any = getattr(getattr(distributed, "distributed_c10d", None), "_resolve_process_group", None)
    try:
        return resolve(name)
    except (RuntimeError, TypeError, ValueError):
        raise ValueError(
            f"this process is in no process group named {name!r}; pass the group_name of a group of torch.distributed, "
            "or '' for this process alone."
        ) from None
