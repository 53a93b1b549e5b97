"""Processes of a run: those that torchrun started, or this one alone.

Process 0 writes. What all must agree on, such as stopping, is summed over a group of the host (gloo), so that nothing
waits for a GPU.
"""

import contextlib
import datetime
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")

# Groups that this process has left. The last reference to a group must be Python's, which lets other threads run while
# the group ends. That of DistributedDataParallel would not, and the group waits for threads of gloo, which need Python
# to free tensors (pytorch/pytorch#56297).
LEFT: list[Any] = []
TIMEOUT = datetime.timedelta(minutes=10)  # of a process that waits for the others; one that fails ends them at once


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


def launched() -> bool:
    """Return whether torchrun, or a launcher with its variables, started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def local_device(device: torch.device) -> torch.device:
    """Return the device of this process: of several on one machine, each takes the GPU of its number."""
    if device.type == "cuda" and launched():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return device


@contextlib.contextmanager
def processes(device: torch.device) -> Iterator[Processes]:
    """Join the processes of the run, and leave them at the end.

    After an error the group is left as it is: the others may wait in it, and end with this process.
    """
    if not launched():
        yield Processes()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    yield Processes(dist.get_rank(), dist.get_world_size())
    LEFT.append(dist.group.WORLD)
    dist.destroy_process_group()
