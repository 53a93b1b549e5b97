"""Processes of a training run or an evaluation: those that torchrun started, or this one alone.

Process 0 writes. What all must agree on, such as stopping, is summed over a group of the host (gloo), so that nothing
waits for a GPU.
"""

import atexit
import contextlib
import datetime
import importlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from hyperseg._launcher import launched

T = TypeVar("T")

# Groups that this process has left. The last reference to a group must be Python's, which lets other threads run while
# the group ends. That of DistributedDataParallel would not, and the group waits for threads of gloo, which need Python
# to free tensors (pytorch/pytorch#56297). They must have ended before the interpreter does: a thread that needs Python
# then aborts the process.
_LEFT: list[Any] = []
atexit.register(_LEFT.clear)


class ProcessLostError(RuntimeError):
    """Another process of the run has ended, so that this one cannot go on."""


@dataclass(frozen=True)
class Processes:
    """The processes of a run: the number of this one, and how many there are."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes files and messages."""
        return self.rank == 0

    def totals(self, *numbers: int) -> list[int]:
        """Return the sums of whole numbers over all processes, without a device."""
        if self.world == 1:
            return list(numbers)
        values = torch.tensor(numbers, dtype=torch.int64)
        dist.all_reduce(values)
        return values.tolist()

    def total(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes, on its device, without waiting for it."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def share(self, value: Any) -> Any:
        """Return what process 0 has."""
        values: list[Any] = [value]
        if self.world > 1:
            dist.broadcast_object_list(values)
        return values[0]

    def collect(self, value: T) -> list[T]:
        """Return what each process has."""
        values: list[Any] = [value] * self.world
        if self.world > 1:
            dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Wait for the other processes."""
        self.totals(0)


def local_device(device: torch.device) -> torch.device:
    """Return the device of this process: of several on one machine, each takes the GPU of its number."""
    if device.type == "cuda" and launched():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return device


@contextlib.contextmanager
def processes(device: torch.device, minutes: float = 10) -> Iterator[Processes]:
    """Join the processes of the run, and leave them at the end.

    After an error the group is left as it is: the others may wait in it, and end with this process.

    Args:
        device: of this process, see :func:`local_device`.
        minutes: how long a process waits for the others, which may be busy; one that has ended is noticed at once.

    Raises:
        ValueError: the others cannot be found.
        ProcessLostError: another process has ended.
    """
    if not launched():
        yield Processes()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # If a group exists when this is first imported, its next collective keeps it for ever (seen with PyTorch 2.15).
    importlib.import_module("torch._dynamo")
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, timeout=datetime.timedelta(minutes=minutes))
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"this process cannot join the {os.environ['WORLD_SIZE']} processes of the run ({error}); "
            "start all of them by torchrun, or unset WORLD_SIZE for one process alone"
        ) from None
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
    except RuntimeError as error:
        if not any(text in str(error) for text in ("Connection closed by peer", "remote process exited")):
            raise
        raise ProcessLostError("another process of the run has ended; its message says why") from None
    _LEFT.append(dist.group.WORLD)
    dist.destroy_process_group()
