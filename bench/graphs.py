"""Calls in a CUDA graph: to replay many costs the host one launch, so that it is the device that is timed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from hyperseg.runtime.graphs import capture


def captured(run: Callable[[], Any], device: torch.device, calls: int) -> Callable[[int], Any]:
    """A step of so many calls, which answers as the last of them; on a CPU they are made one by one.

    The answer lies in memory that the next step overwrites.
    """
    if device.type != "cuda":
        return lambda i: [run() for _ in range(calls)][-1]
    graph, answer = capture(run, device, calls)

    def step(i: int) -> Any:
        graph.replay()
        return answer

    return step
