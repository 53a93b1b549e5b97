"""CUDA graphs: many launches for the price of one."""

from collections.abc import Callable
from typing import TypeVar

import torch

Answer = TypeVar("Answer")


def capture(run: Callable[[], Answer], device: torch.device, calls: int = 1) -> tuple[torch.cuda.CUDAGraph, Answer]:
    """A graph of so many calls, and the answer of the last, which every replay writes anew into the same memory.

    Raises what ``run`` raises in a capture, such as where it waits for the device.
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
                answer = run()
    except Exception:
        torch.cuda.set_stream(before)  # a capture that fails leaves its own stream the current one
        raise
    return graph, answer
