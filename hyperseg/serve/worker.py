"""The thread that segments images, one at a time, with an engine for each network and size."""

import asyncio
import io
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from torch import nn

from hyperseg._text import brief
from hyperseg.data.drawing import label_image
from hyperseg.data.labels import LabelSet
from hyperseg.data.shares import ClassShare, class_shares
from hyperseg.images import SourceError, decode_image
from hyperseg.images.errors import TooManyPixelsError
from hyperseg.models import unwrap
from hyperseg.ops import BACKENDS, BackendError, named_backend, use_backend
from hyperseg.ops.backends.dispatch import PREFERENCE
from hyperseg.predict import Predictor, label_set_of
from hyperseg.runtime import EngineError
from hyperseg.runtime.device import is_out_of_memory, pick_device
from hyperseg.serve.errors import RequestError
from hyperseg.serve.limits import Limits
from hyperseg.serve.requests import KINDS, Query, network_size

Size = tuple[int, int]


@dataclass(frozen=True)
class Network:
    """A network, the name by which requests choose it, and whether its weights are random, so that it says nothing."""

    name: str
    model: nn.Module
    random_weights: bool = False


@dataclass(frozen=True)
class Result:
    """Labels as a PNG whose palette index is the class, and what is known about them.

    network_size: (H, W) that the network ran at.
    seconds: by stage: queue, decode, build (if an engine was built for this size), network, encode.
    """

    png: bytes
    height: int
    width: int
    network_size: Size
    shares: list[ClassShare]
    label_set: LabelSet
    seconds: dict[str, float]


@dataclass
class _Job:
    """What a request asks for. `data` is let go of when the request ends before its turn."""

    query: Query
    data: bytes
    came: float = field(default_factory=time.perf_counter)


class Worker:
    """Runs networks on images in one thread of its own, in the order in which they came.

    Args:
        networks: at least one; the first is the one that a request without a name gets.
        device, dtype: as for `Predictor`.
        limits: of which the queue, the sizes and the number of engines concern it.

    Raises:
        ValueError: there is no network, or two have the same name; or as `Predictor`.
    """

    def __init__(
        self,
        networks: Sequence[Network],
        device: str | torch.device = "cpu",
        dtype: torch.dtype | str = torch.float32,
        limits: Limits | None = None,
    ) -> None:
        self.networks = {network.name: network for network in networks}
        if not networks or len(self.networks) < len(networks):
            raise ValueError(f"give networks of different names; got {[network.name for network in networks]}")
        self.limits = Limits() if limits is None else limits
        self.device, self.dtype = pick_device(device), dtype
        self.label_sets = {network.name: label_set_of(unwrap(network.model).config) for network in networks}
        self.backends = [name for name in PREFERENCE[self.device.type] if not BACKENDS[name].unavailable_reasons()]
        if self.default_backend() not in ("auto", *self.backends):  # for example Triton's interpreter on a CPU
            self.backends.append(self.default_backend())
        self.pending = 0
        self._lock = threading.Lock()
        self._predictors: OrderedDict[tuple[str, Size], Predictor] = OrderedDict()
        self._thread = ThreadPoolExecutor(1, "hyperseg-serve")

    def resolution(self, name: str) -> Size:
        """Return the size (H, W) at which the published network was tested."""
        height, width = unwrap(self.networks[name].model).config.resolution
        return height, width

    def default_backend(self) -> str:
        """Return the backend of a request that names none: "auto", or HYPERSEG_BACKEND."""
        return named_backend() or "auto"

    async def segment(self, query: Query, data: bytes) -> Result:
        """Segment the image in `data` when its turn comes.

        Raises RequestError: too many wait, it takes too long, or the image cannot be done. When the caller is
        cancelled, an image whose turn has not come is not done.
        """
        job = _Job(query, data)
        future = self._submit(job)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self.limits.result_seconds)
        except (TimeoutError, asyncio.TimeoutError):
            seconds = self.limits.result_seconds
            message = f"there was no result after {seconds:g} seconds; try a smaller size, or later"
            raise RequestError(504, "timeout", message) from None
        finally:
            job.data = b""

    def warm_up(self, name: str) -> float:
        """Segment a black image of a network's own size, so that the first request waits less. Return the seconds.

        Raises RequestError: the network does not run.
        """
        start = time.perf_counter()
        height, width = self.resolution(name)
        black = io.BytesIO()
        Image.new("RGB", (width, height)).save(black, "PNG")
        self._submit(_Job(Query(name, self.default_backend(), "model"), black.getvalue())).result()
        return time.perf_counter() - start

    def close(self) -> None:
        """End the thread after the image that it is doing."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _submit(self, job: _Job) -> "Future[Result]":
        with self._lock:
            if self.pending >= self.limits.queue:
                message = f"{self.pending} images wait already; try again in a second"
                raise RequestError(503, "busy", message, {"Retry-After": "1"})
            self.pending += 1
        try:
            future = self._thread.submit(self._run, job)
        except RuntimeError:  # the thread has ended
            self._done(None)
            raise RequestError(503, "stopping", "the server is being stopped", {"Retry-After": "5"}) from None
        future.add_done_callback(self._done)
        return future

    def _done(self, _: object) -> None:
        with self._lock:
            self.pending -= 1

    def _run(self, job: _Job) -> Result:
        watch = _Watch(job.came)
        watch.lap("queue")
        try:
            return self._segment(job.query, job.data, watch)
        except TooManyPixelsError as error:
            raise RequestError(413, "too_many_pixels", str(error)) from None
        except SourceError as error:
            raise RequestError(422, "unreadable", str(error)) from None
        except BackendError as error:
            raise RequestError(422, "backend", brief(error)) from None
        except EngineError as error:
            raise RequestError(500, "network", brief(error)) from None
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Raised out here because an exception raised above would keep the first one, and the tensors in its traceback.
        raise RequestError(413, "out_of_memory", "the image does not fit in memory; give a smaller size")

    def _segment(self, query: Query, data: bytes, watch: "_Watch") -> Result:
        image = decode_image(data, "the image", formats=list(KINDS), most_pixels=self.limits.pixels)
        watch.lap("decode")
        full = (image.shape[0], image.shape[1])
        size = network_size(query.size, full, self.resolution(query.network), self.limits)
        built = (query.network, size) not in self._predictors
        predictor = self._predictor(query.network, size)
        if built:
            watch.lap("build")
        with use_backend(query.backend):
            labels = predictor(image)
        watch.lap("network")
        png = encoded(labels, predictor.label_set)
        shares = class_shares(labels, predictor.label_set)
        watch.lap("encode")
        return Result(png, *full, size, shares, predictor.label_set, watch.seconds)

    def _predictor(self, name: str, size: Size) -> Predictor:
        """Return the predictor for a network and size, with its engine, built on first use."""
        key = name, size
        if key not in self._predictors:
            known = next((p for (other, _), p in self._predictors.items() if other == name), None)
            while len(self._predictors) >= self.limits.engines:
                self._predictors.popitem(last=False)
            predictor = known.at(size) if known else self._new_predictor(name, size)
            predictor.engine(size)  # now, so that it is not counted as the network's time
            self._predictors[key] = predictor
        self._predictors.move_to_end(key)
        return self._predictors[key]

    def _new_predictor(self, name: str, size: Size) -> Predictor:
        return Predictor(self.networks[name].model, size, self.device, self.dtype, keep=1)


class _Watch:
    """Seconds by stage."""

    def __init__(self, start: float) -> None:
        self._last, self.seconds = start, dict[str, float]()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = now - self._last
        self._last = now


def encoded(labels: np.ndarray, table: LabelSet) -> bytes:
    """Return labels as an 8-bit palette PNG, compressed quickly."""
    file = io.BytesIO()
    label_image(labels, table).save(file, "PNG", compress_level=1, bits=8)
    return file.getvalue()
