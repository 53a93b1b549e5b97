"""A fake CUDA device: commands and tests written for a GPU run on the CPU, so that their mistakes show without a GPU.

    python -m tests.fakes.cuda bench/fps.py --model hyperseg-s --size 128x256 --quick --backend reference
    python -m tests.fakes.cuda -m pytest -m "gpu and not slow" tests/runtime

Its tensors are stored on the CPU and report cuda:0 as their device. As with CUDA, an operator refuses to mix them with
host tensors, and a graph capture refuses operators that synchronise; a replay computes the recorded operators again
into the same memory. Inside `lazy()` streams are asynchronous: work is done as late as waiting for it allows, so that a
missing wait gives wrong values. It runs no kernels (csrc/shim and Triton's interpreter do), torch.compile does not know
its tensors, and times mean nothing.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import itertools
import os
import runpy
import sys
import time
import types
import weakref
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
NAME = "NVIDIA H200"
SYNCHRONISING = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select"}
MIXED = {"copy_", "_to_copy", "scatter"}
# One entry per copy, such as "pinned to device"; replays of graphs are not listed.
COPIES: list[str] = []
PROPERTIES = types.SimpleNamespace(
    name=NAME, major=9, minor=0, multi_processor_count=132, total_memory=139 * 2**30, L2_cache_size=50 * 2**20, uuid=""
)


class FakeCudaTensor(torch.Tensor):
    """A tensor that reports to be on cuda:0; ``inner`` has its values on the CPU."""

    @staticmethod
    def __new__(cls, inner):
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset()}
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=CPU, **layout)

    def __init__(self, inner):
        self.inner = inner

    device = property(lambda self: GPU)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def data_ptr(self):
        return self.inner.data_ptr()

    def untyped_storage(self):
        return self.inner.untyped_storage()

    def record_stream(self, stream):
        pass

    def tolist(self):
        return on_host(self).tolist()

    def numpy(self, **kwargs):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def set_(self, source):
        """Return another tensor in the memory of ``source``: the size of this one cannot change."""
        return FakeCudaTensor(torch.empty(0, dtype=source.dtype).set_(source.inner))

    def __repr__(self, **kwargs):
        return f"FakeCudaTensor({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        hosts = [t for t in given if not isinstance(t, FakeCudaTensor)]
        name = func._overloadpacket.__name__
        # Scalars and indices may come from the host; so do zeros that the autograd of PyTorch 2.11 scatters into, as it
        # makes them in C++ on the device that is stored.
        if any(t.dim() for t in hosts) and name not in MIXED and not name.startswith("index"):
            raise RuntimeError(f"Expected all tensors to be on the same device, but {func} got cuda:0 and cpu")
        if Graph.recording is not None and (name in SYNCHRONISING or (name == "copy_" and hosts)):
            raise RuntimeError(f"{func}: operation not permitted when stream is capturing")
        if name in {"copy_", "clone"}:
            log_copy(given[-1], given[0] if name == "copy_" else args[0])
        queued = Stream.lazy and Graph.recording is None
        if queued and name in SYNCHRONISING:
            synchronize()
        elif queued and func._schema.is_mutable:
            Stream.current.queue.append(functools.partial(func, *unwrapped(args), **unwrapped(kwargs)))
            return kwargs.get("out", args[0])
        known = {id(t.inner): t for t in given if isinstance(t, FakeCudaTensor)}
        inner_args, inner_kwargs = unwrapped(args), unwrapped(kwargs)
        out = func(*inner_args, **inner_kwargs)
        if Graph.recording is not None:
            Graph.recording.append((func, inner_args, inner_kwargs, out))
        if queued and name not in SYNCHRONISING:
            Stream.current.later(func, inner_args, inner_kwargs, out)
        if name == "copy_" and not isinstance(args[0], FakeCudaTensor):
            return args[0]
        return tree_map_only(torch.Tensor, lambda t: known[id(t)] if id(t) in known else FakeCudaTensor(t), out)


def unwrapped(value):
    """Return arguments of an operator with CPU tensors and the CPU device in place of the fake ones."""
    if isinstance(value, FakeCudaTensor):
        return value.inner
    if isinstance(value, torch.device):
        return CPU
    if isinstance(value, tuple | list):
        return type(value)(map(unwrapped, value))
    if isinstance(value, dict):
        return {key: unwrapped(v) for key, v in value.items()}
    return value


class Transfers(TorchFunctionMode):
    """Intercepts functions that create tensors on a device or copy them to another one."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if func is torch.Tensor.to:
            return moved(*args, **kwargs)
        if name == "cuda":
            return moved(args[0], GPU)
        if name == "cpu":
            return moved(args[0], CPU)
        if name == "pin_memory":
            return pinned(args[0].clone())
        if name == "is_pinned":
            return is_pinned(args[0])
        if kwargs.pop("pin_memory", False):
            return pinned(func(*args, **kwargs))
        if name == "__deepcopy__" and isinstance(args[0], FakeCudaTensor):
            return copied(*args)
        device = kwargs.get("device")
        if device is None or torch.device(device).type != "cuda":
            return func(*args, **kwargs)
        requires_grad = kwargs.pop("requires_grad", False)
        made = func(*args, **kwargs | {"device": CPU})
        made = tree_map_only(torch.Tensor, lambda t: t if isinstance(t, FakeCudaTensor) else FakeCudaTensor(t), made)
        return made.requires_grad_() if requires_grad else made


def moved(t: torch.Tensor, *args, **kwargs) -> torch.Tensor:
    """Stand in for ``Tensor.to``."""
    how = {key: kwargs[key] for key in ("memory_format", "copy") if key in kwargs}
    device = None
    for given in (*args, *(kwargs.get(key) for key in ("device", "dtype", "other"))):
        if isinstance(given, torch.Tensor):
            device, how["dtype"] = given.device, given.dtype
        elif isinstance(given, str | torch.device):
            device = torch.device(given)
        elif isinstance(given, torch.dtype):
            how["dtype"] = given
    if device is not None and device.type == "cuda" and not isinstance(t, FakeCudaTensor):
        if device.index not in {None, 0}:
            raise RuntimeError("CUDA error: invalid device ordinal")
        if Graph.recording is not None:
            raise RuntimeError("copy from the host: operation not permitted when stream is capturing")
        log_copy(t, FakeCudaTensor(t.detach()))
        plain = t.detach()
        if Stream.lazy and is_pinned(t):
            there = torch.full_like(torch.Tensor.to(plain, **how), 1)
            Stream.current.queue.append(lambda: there.copy_(plain))
            return FakeCudaTensor(there)
        there = torch.Tensor.to(plain, **how)
        return FakeCudaTensor(there.clone() if there.data_ptr() == plain.data_ptr() else there)
    if device is not None and device.type == "cpu" and isinstance(t, FakeCudaTensor):
        t = on_host(t)
    return torch.Tensor.to(t, **how) if how else t


def pinned(t: torch.Tensor) -> torch.Tensor:
    t.pinned = True
    return t


def is_pinned(t: torch.Tensor | None) -> bool:
    """Whether a tensor, or the one that it is a view of, is in pinned memory."""
    return t is not None and (getattr(t, "pinned", False) or is_pinned(t._base))


def log_copy(source: torch.Tensor, destination: torch.Tensor) -> None:
    def memory(t: torch.Tensor) -> str:
        return "device" if isinstance(t, FakeCudaTensor) else "pinned" if is_pinned(t) else "pageable"

    COPIES.append(f"{memory(source)} to {memory(destination)}")


def on_host(t: FakeCudaTensor) -> torch.Tensor:
    if Graph.recording is not None:
        raise RuntimeError("copy to the host: operation not permitted when stream is capturing")
    synchronize()
    COPIES.append("device to pageable")
    return t.inner.detach().clone()


def copied(t: FakeCudaTensor, memo: dict) -> torch.Tensor:
    if id(t) not in memo:
        copy = FakeCudaTensor(t.inner.detach().clone())
        parameter = isinstance(t, torch.nn.Parameter)
        memo[id(t)] = torch.nn.Parameter(copy, t.requires_grad) if parameter else copy.requires_grad_(t.requires_grad)
    return memo[id(t)]


class Graph:
    """Stand-in for ``torch.cuda.CUDAGraph``."""

    recording: list | None = None

    def replay(self):
        if Stream.lazy:
            Stream.current.queue.append(self._replay)
        else:
            self._replay()

    def _replay(self):
        for func, args, kwargs, out in self.tape:
            for kept, new in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(kept, torch.Tensor) and kept.data_ptr() != new.data_ptr():
                    kept.copy_(new)


@contextlib.contextmanager
def capture(graph: Graph, **options):
    Graph.recording = []
    graph.pool = options.get("pool")
    try:
        yield
    finally:
        graph.tape, Graph.recording = Graph.recording, None


class Event:
    def __init__(self, **kwargs):
        self.place = None

    def record(self, stream=None):
        self.time = time.perf_counter()
        stream = stream or Stream.current
        self.place = stream, stream.done + len(stream.queue)

    def synchronize(self):
        if self.place is not None:
            stream, place = self.place
            stream.run(place)

    def elapsed_time(self, later):
        return 1e3 * (later.time - self.time)


STREAMS: weakref.WeakSet[Stream] = weakref.WeakSet()


class Stream:
    """A queue of work, which runs when something waits for it. Without `lazy()` nothing is queued.

    Attributes:
        queue, done: what is to be run, and how much was.
    """

    current: Stream
    lazy = False
    running = 0

    def __init__(self, *args):
        self.queue, self.done = collections.deque(), 0
        STREAMS.add(self)

    def run(self, place: int) -> None:
        """Run until so much is done."""
        Stream.running += 1
        try:
            while self.done < place:
                self.done += 1
                with torch.inference_mode():  # in which any tensor may be written to
                    self.queue.popleft()()
        finally:
            Stream.running -= 1

    def later(self, func, args, kwargs, out) -> None:
        """Compute an output again when its turn comes; until then it has wrong values. A view has those of its base."""
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        outputs = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        if any(t.untyped_storage().data_ptr() in given for t in outputs):
            return
        for t in outputs:
            t.fill_(1)

        def compute():
            made = [t for t in tree_leaves(func(*args, **kwargs)) if isinstance(t, torch.Tensor)]
            for kept, new in zip(outputs, made, strict=True):
                kept.copy_(new)

        self.queue.append(compute)

    def wait_stream(self, other):
        event = Event()
        event.record(other)
        self.wait_event(event)

    def wait_event(self, event):
        if Stream.lazy:
            self.queue.append(event.synchronize)

    def synchronize(self):
        self.run(self.done + len(self.queue))
        if Graph.recording is not None:
            raise RuntimeError("synchronize: operation not permitted when stream is capturing")


Stream.current = Stream()


@contextlib.contextmanager
def on_stream(stream: Stream):
    """Stand in for ``torch.cuda.stream``."""
    before, Stream.current = Stream.current, stream or Stream.current
    try:
        yield
    finally:
        Stream.current = before


@contextlib.contextmanager
def lazy():
    """Make streams asynchronous inside: work is done when the host waits for it, directly or through other streams."""
    Stream.lazy = True
    try:
        yield
    finally:
        synchronize()
        Stream.lazy = False


def synchronize(device=None):
    for stream in [] if Stream.running else list(STREAMS):  # work that runs does not wait for other work
        stream.run(stream.done + len(stream.queue))
    if Graph.recording is not None:
        raise RuntimeError("synchronize: operation not permitted when stream is capturing")


def install() -> None:
    """Replace functions of ``torch.cuda`` for the rest of the process."""
    values = {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_name": NAME,
        "get_device_capability": (9, 0),
        "get_device_properties": PROPERTIES,
        "mem_get_info": (2**29, PROPERTIES.total_memory),  # little free memory: benchmarks stay small
        "memory_allocated": 2**20,
        "max_memory_allocated": 2**22,
        "set_device": None,
        "set_stream": None,
        "reset_peak_memory_stats": None,
        "empty_cache": None,
        "_sleep": None,
    }
    for name, value in values.items():
        setattr(torch.cuda, name, lambda *args, value=value: value)
    # A child process would not have the fake.
    os.environ.setdefault("HYPERSEG_VERIFY", "0")
    torch.cuda.synchronize, torch.cuda.graph, torch.cuda.CUDAGraph = synchronize, capture, Graph
    torch.cuda.is_current_stream_capturing = lambda: Graph.recording is not None
    torch.cuda.Event, torch.cuda.Stream, torch.cuda.current_stream = Event, Stream, lambda *args: Stream.current
    torch.cuda.stream, torch.cuda.device = on_stream, contextlib.nullcontext
    pools = itertools.count(1)
    torch.cuda.graph_pool_handle = lambda: (0, next(pools))
    # Otherwise F.interpolate decomposes into functions that create tensors without passing the mode below.
    torch.are_deterministic_algorithms_enabled = lambda: False
    # A module's parameters change their class when they move to another device.
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    Transfers().__enter__()


if __name__ == "__main__":
    install()
    sys.argv = sys.argv[1:]
    if sys.argv[0] == "-m":
        sys.argv = sys.argv[1:]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(Path(sys.argv[0]).parent))
        runpy.run_path(sys.argv[0], run_name="__main__")
