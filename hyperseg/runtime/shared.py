"""Memory that engines of several sizes share, and use one at a time."""

import math
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from hyperseg.runtime.graphs import GraphPool


class Shared:
    """Memory of CUDA graphs, pinned memory for frames, and the lock that one call at a time holds.

    Attributes:
        lock: reentrant; held by a call that uses the rest.
        graphs: memory of the engines' CUDA graphs.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.graphs = GraphPool()
        self._pinned: Tensor | None = None

    def pinned(self, shape: Sequence[int]) -> Tensor:
        """Return uint8 memory of this shape, pinned, that the next call overwrites. The caller holds the lock."""
        size = math.prod(shape)
        if self._pinned is None or self._pinned.numel() < size:
            self._pinned = None  # first, so that both are not held at once
            with torch.inference_mode(False):  # to be written to outside it too
                self._pinned = torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=True)
        return self._pinned[:size].view(tuple(shape))
