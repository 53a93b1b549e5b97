"""A run on the fake CUDA device that prints each operator of its steps for which the host would wait.

python -m tests.fakes.cuda tests/training/watched_run.py DATA RUN SETTING ...
"""

import sys
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hyperseg.models import VARIANTS
from hyperseg.training.loop import train
from hyperseg.training.step import Stepper
from tests.training.runs import TINY, small

SYNCHRONISING = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "bincount"}


class Watch(TorchDispatchMode):
    """Prints operators that wait for the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in SYNCHRONISING:
            print("waits:", func)
        return func(*args, **(kwargs or {}))


def main(data: str, run: str, *changes: str) -> None:
    """Train, with a watch on each step."""
    torch.optim.Optimizer._accelerator_graph_capture_health_check = lambda self: None  # it asks the driver
    VARIANTS["tiny"] = TINY
    step = Stepper.__call__

    def watched(self, *args):
        with Watch():
            figures = step(self, *args)
            if "--wait" in sys.argv:
                figures.sum().item()
            return figures

    Stepper.__call__ = watched
    train(small(Path(data), *changes), run, "cuda")


if __name__ == "__main__":
    main(*[argument for argument in sys.argv[1:] if argument != "--wait"])
