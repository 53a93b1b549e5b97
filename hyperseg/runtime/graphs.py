"""CUDA graphs: capture a function once, replay all its launches at the cost of one."""

import contextlib
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

Output = TypeVar("Output")


def capture(
    run: Callable[[], Output], device: torch.device, calls: int = 1, pool: Any = None
) -> tuple[torch.cuda.CUDAGraph, Output]:
    """Capture ``calls`` calls of ``run`` in a CUDA graph.

    Args:
        pool: of the graph's memory, as of ``torch.cuda.graph_pool_handle()``; None: one of its own.

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
    graph, pool = torch.cuda.CUDAGraph(), pool or torch.cuda.graph_pool_handle()
    try:
        # "thread_local": other threads may allocate and synchronise meanwhile.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            for _ in range(calls):
                output = run()
    except Exception:
        torch.cuda.set_stream(before)  # a failed capture leaves its own stream current
        _end_allocations(device, pool)
        raise
    return graph, output


def _end_allocations(device: torch.device, pool: tuple[int, int]) -> None:
    """End the allocations in a failed capture's pool, which torch before 2.12 does not.

    There the next ``torch.cuda.empty_cache()`` would fail, or the next allocation that finds the memory full.
    See https://github.com/pytorch/pytorch/issues/180395.
    """
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 12):
        with contextlib.suppress(RuntimeError):  # it failed before it allocated anything
            torch._C._cuda_endAllocateToPool(device.index, pool)


class GraphPool:
    """Memory of graphs that are replayed one at a time: what one needs between its kernels, the next one uses again.

    Their inputs and outputs are apart: a graph's are not overwritten by another graph.
    """

    def __init__(self) -> None:
        self._handle: Any = None
        self._graphs: weakref.WeakSet[Captured] = weakref.WeakSet()
        self._stream: torch.cuda.Stream | None = None  # of the last replay

    def capture(self, captured: "Captured", run: Callable[[], Tensor]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """Capture ``run`` in a graph of this pool. The pool lasts as long as a graph of it does."""
        others = list(self._graphs)  # held, so that the pool lasts until this graph is in it
        if not others:  # a pool without graphs is given back, and PyTorch does not open it again
            self._handle = torch.cuda.graph_pool_handle()
        found = capture(run, captured.device, pool=self._handle)
        self._graphs.add(captured)
        del others
        return found

    def follow(self, stream: torch.cuda.Stream) -> None:
        """Let the stream, which replays a graph next, wait for the one that replayed the last and for its readers."""
        if self._stream is not None and stream != self._stream:
            stream.wait_stream(self._stream)
        self._stream = stream


class Captured:
    """Function of one tensor in a CUDA graph: captured in the first call, replayed on its own buffers in each.

    Args:
        run: the function; its input and output are on ``device``.
        device: CUDA device to run on.
        pool: memory shared with other graphs.
    """

    def __init__(self, run: Callable[[Tensor], Tensor], device: torch.device, pool: GraphPool | None = None):
        self.run, self.device, self.pool = run, device, pool or GraphPool()
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Copy ``x``, on the device or in pinned memory, to the captured input, and replay.

        Threads may not call it, or another one of its pool, at the same time, but may follow each other on different
        streams.

        Returns:
            The captured output, which the next call overwrites.
        """
        if self.graph is None:
            self.input = torch.empty_like(x, device=self.device).copy_(x)
            self.graph, self.output = self.pool.capture(self, lambda: self.run(self.input))
        self.pool.follow(torch.cuda.current_stream(self.device))
        self.input.copy_(x, non_blocking=True)
        self.graph.replay()
        return self.output
