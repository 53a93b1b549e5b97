"""A stream of frames through an engine: on a GPU, copies in both directions overlap with the computation."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hyperseg.runtime.arguments import check_frame

if TYPE_CHECKING:
    from hyperseg.runtime.engine import Engine

_SLOTS = 2


def pipelined(engine: Engine, frames: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield the labels of single frames, see :meth:`hyperseg.runtime.Engine.pipeline`."""
    source = _Source(engine, frames)
    if engine.device.type == "cpu":
        yield from _one_by_one(engine, source)
    else:
        yield from _overlapped(engine, source)
    if source.error is not None:
        raise source.error


class _Source:
    """Reads frames into batches, up to the first error, which it keeps for the time when all labels are out."""

    def __init__(self, engine: Engine, frames: Iterable[Tensor]):
        self.frames, self.size, self.batch = iter(frames), engine.size, engine.batch
        self.error: Exception | None = None
        self.ended = False

    def fill(self, batch: Tensor) -> int:
        """Copy frames into ``[N, H, W, 3]`` and return their number; zeros take the place of missing ones."""
        count = 0
        for frame in self.read():
            batch[count].copy_(frame)
            count += 1
        batch[count:].zero_()
        return count

    def read(self) -> Iterator[Tensor]:
        """Yield the frames of the next batch."""
        count = 0
        while not self.ended and count < self.batch:
            frame = self._next()
            if frame is not None:
                count += 1
                yield frame

    def _next(self) -> Tensor | None:
        try:
            frame = next(self.frames)
            check_frame(frame, self.size)
            return frame
        except StopIteration:
            self.ended = True
        except Exception as error:
            self.error, self.ended = error, True
        return None


def _one_by_one(engine: Engine, source: _Source) -> Iterator[Tensor]:
    """Label each batch when it is read."""
    while not source.ended:
        if engine.batch == 1:
            for frame in source.read():
                yield engine(frame[None])[0]
        else:
            batch = torch.empty((engine.batch, *engine.size, 3), dtype=torch.uint8, device="cpu")
            if count := source.fill(batch):
                yield from engine(batch)[:count]


class _Slot:
    """The buffers of one batch on its way, and an event after each of its steps.

    The host waits for ``downloaded`` before the slot is used again, and the other steps come before that one. So no
    buffer is overwritten while something still reads it.
    """

    def __init__(self, engine: Engine):
        frames, labels = (engine.batch, *engine.size, 3), (engine.batch, *engine.size)
        self.host = torch.empty(frames, dtype=torch.uint8, device="cpu", pin_memory=True)
        self.device = torch.empty(frames, dtype=torch.uint8, device=engine.device)
        self.labels = torch.empty(labels, dtype=torch.uint8, device="cpu", pin_memory=True)
        self.computed_labels: Tensor | None = None  # held until they are downloaded
        self.uploaded, self.computed, self.downloaded = (torch.cuda.Event() for _ in range(3))
        self.count = 0


def _overlapped(engine: Engine, source: _Source) -> Iterator[Tensor]:
    """Keep two batches on their way; yield the labels of the older one before the next one is read."""
    with torch.inference_mode(False), torch.cuda.device(engine.device):
        slots = [_Slot(engine) for _ in range(_SLOTS)]
        up, down = (torch.cuda.Stream(engine.device) for _ in range(2))
        compute = engine._stream or torch.cuda.Stream(engine.device)
        # The memory of the slots on the device may have been another tensor's, which the current stream still uses.
        up.wait_stream(torch.cuda.current_stream(engine.device))
    pending: deque[_Slot] = deque()
    try:
        for slot in itertools.cycle(slots):
            if len(pending) == _SLOTS:
                yield from _finished(pending.popleft())
            if source.ended:
                break
            slot.count = source.fill(slot.host)
            if slot.count:
                _start(engine, slot, up, compute, down)
                pending.append(slot)
        while pending:
            yield from _finished(pending.popleft())
    finally:
        for stream in (up, compute, down):
            stream.synchronize()  # before the buffers are freed


def _start(
    engine: Engine, slot: _Slot, up: torch.cuda.Stream, compute: torch.cuda.Stream, down: torch.cuda.Stream
) -> None:
    """Queue all steps of a batch; none of them waits for the host."""
    with torch.cuda.device(engine.device):
        with torch.cuda.stream(up):
            slot.device.copy_(slot.host, non_blocking=True)
            slot.uploaded.record(up)
        with torch.cuda.stream(compute):
            compute.wait_event(slot.uploaded)
            slot.computed_labels = engine._call("frame", slot.device)
            slot.computed.record(compute)
        with torch.cuda.stream(down):
            down.wait_event(slot.computed)
            slot.labels.copy_(slot.computed_labels, non_blocking=True)
            slot.downloaded.record(down)


def _finished(slot: _Slot) -> list[Tensor]:
    """Wait for the labels of a batch; return copies, because the slot is used again."""
    slot.downloaded.synchronize()
    slot.computed_labels = None
    return list(slot.labels[: slot.count].clone())
