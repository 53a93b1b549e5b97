"""CUDA graphs: capture a function once, replay all its launches at the cost of one."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

Output = TypeVar("Output")


def capture(run: Callable[[], Output], device: torch.device, calls: int = 1) -> tuple[torch.cuda.CUDAGraph, Output]:
    """Capture ``calls`` calls of ``run`` in a CUDA graph.

    Returns:
        The graph and the last call's output, which each replay overwrites.

    Raises:
        Exception: whatever ``run`` raises while it is captured, for instance because it waits for the device.
    """
    before = torch.cuda.current_stream(device)
    # Lazy initialisation (cuDNN plans, Triton kernels) must happen before the capture.
    stream = torch.cuda.Stream(device)
    stream.wait_stream(before)
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    before.wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            for _ in range(calls):
                output = run()
    except Exception:
        torch.cuda.set_stream(before)  # a failed capture leaves its own stream current
        raise
    return graph, output


class Captured:
    """Function of one tensor in a CUDA graph: captured in the first call, replayed on its own buffers in each.

    Args:
        run: the function; its input and output are on ``device``.
        device: CUDA device to run on.
    """

    def __init__(self, run: Callable[[Tensor], Tensor], device: torch.device):
        self.run, self.device = run, device
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Copy ``x``, on the device or in pinned memory, to the captured input, and replay.

        Returns:
            The captured output, which the next call overwrites.
        """
        if self.graph is None:
            self.input = torch.empty_like(x, device=self.device).copy_(x)
            self.graph, self.output = capture(lambda: self.run(self.input), self.device)
        self.input.copy_(x, non_blocking=True)
        self.graph.replay()
        return self.output
