"""Roofline: ceilings of this machine, measured in the same run, and counted FLOPs and bytes."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from bench.core.timing import median, synchronize
from hyperseg import ops
from hyperseg.ops.backends import reference
from hyperseg.runtime.work import tensor_bytes

# Functions of a value that cost about as much as a SiLU: an exponential and a division.
FUNCTIONS = {"silu", "silu_", "sigmoid", "sigmoid_"}
MOVES_NOTHING = {"as_strided", "detach", "alias", "_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty"}
NAMESPACES = ("hyperseg", "hyperseg_native")


@dataclass(frozen=True)
class Ceilings:
    """Rates of this device with this number of threads: the best of several attempts.

    Attributes:
        copy_bytes_per_second: of a large copy, bytes read plus bytes written.
        matmul_flops_per_second: of a large square matrix multiplication in ``dtype``, by the fastest library.
        copy_bytes: bytes read and written by the copy.
        matmul_size: rows of the matrices.
        silu_per_second: values of SiLU in float32, in which every kernel computes it; None on a GPU, where no operator
            of PyTorch's runs at the rate that a kernel reaches on values in registers.
    """

    copy_bytes_per_second: float
    matmul_flops_per_second: float
    copy_bytes: int
    matmul_size: int
    dtype: str
    silu_per_second: float | None = None


@dataclass(frozen=True)
class Bound:
    """The shortest time that the roofline allows.

    Attributes:
        seconds: that time.
        by: what sets it, ``"arithmetic"``, ``"SiLU"`` or ``"memory"``.
        percent: that time in percent of the measured one.
    """

    seconds: float
    by: str
    percent: float


def bound(flops: float, bytes_moved: float, ceilings: Ceilings, measured_seconds: float, functions: float = 0) -> Bound:
    """Return the largest of three times: FLOPs, values of functions and bytes, each at its measured rate."""
    times = {
        "arithmetic": flops / ceilings.matmul_flops_per_second,
        "SiLU": functions / ceilings.silu_per_second if ceilings.silu_per_second else 0.0,
        "memory": bytes_moved / ceilings.copy_bytes_per_second,
    }
    by = max(times, key=lambda name: times[name])
    return Bound(times[by], by, 100 * times[by] / measured_seconds)


def seconds_in_turn(flops: float, bytes_moved: float, ceilings: Ceilings, functions: float) -> float:
    """Return the time of FLOPs and then values of functions, or that of the bytes if it is longer."""
    computed = flops / ceilings.matmul_flops_per_second
    if ceilings.silu_per_second:
        computed += functions / ceilings.silu_per_second
    return max(computed, bytes_moved / ceilings.copy_bytes_per_second)


def best_seconds(step: Callable[[], object], device: torch.device, repeats: int, limit: float) -> float:
    """Return the time of the fastest of up to `repeats` runs after an untimed one; stop after `limit` seconds."""
    step()
    synchronize(device)
    best = float("inf")
    began = time.perf_counter()
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        synchronize(device)
        best = min(best, time.perf_counter() - start)
        if time.perf_counter() - began > limit:
            break
    return best


def measure_ceilings(device: torch.device, dtype: torch.dtype, quick: bool = False) -> Ceilings:
    """Measure the rates of a large copy, a large matrix multiplication of random data and, on a CPU, of SiLU."""
    cuda = device.type == "cuda"
    limit = 0.5 if quick else 2.0
    size = (64 if quick else 256) * 2**20
    if cuda:
        free, _ = torch.cuda.mem_get_info(device)
        size = max(2**20, min(2 * 2**30, free // 8))
    moved, copy = time_copy(device, size, limit)
    # Grow the matrices until a multiplication takes long enough to time: some types are far slower on a CPU.
    n, largest = (2048, 8192) if cuda else (256, 1024 if quick else 2048)
    matmul = time_matmul(device, dtype, n, limit)
    while n < largest and matmul < limit / 8:
        n *= 2
        matmul = time_matmul(device, dtype, n, limit)
    if cuda:
        torch.cuda.empty_cache()
    silu = None if cuda else silu_rate(device, limit / 4)
    return Ceilings(moved / copy, 2 * n**3 / matmul, moved, n, str(dtype).removeprefix("torch."), silu)


def time_copy(device: torch.device, size: int, limit: float) -> tuple[int, float]:
    """Return the bytes read and written by copying `size` bytes, and the seconds it takes."""
    source = torch.empty(size // 4, device=device, dtype=torch.float32).uniform_()
    target = torch.empty_like(source)
    return 2 * source.nbytes, best_seconds(lambda: target.copy_(source), device, 20, limit)


def time_matmul(device: torch.device, dtype: torch.dtype, n: int, limit: float) -> float:
    """Return the seconds of an [n, n] x [n, n] matrix multiplication, by the fastest library that PyTorch has."""
    return min(best_seconds(product, device, 20, limit) for product in products(device, dtype, n))


def products(device: torch.device, dtype: torch.dtype, n: int) -> list[Callable[[], object]]:
    """Return multiplications of two [n, n] matrices: that of ``torch.mm``, and on a CPU that of oneDNN.

    For float32 ``torch.mm`` calls MKL, which reached less than half the rate of oneDNN on an AMD EPYC.
    """
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    found: list[Callable[[], object]] = [functools.partial(torch.mm, a, b, out=torch.empty_like(a))]
    mkldnn = torch.ops.mkldnn
    supported = dtype == torch.float32 or (dtype == torch.bfloat16 and mkldnn._is_mkldnn_bf16_supported())
    if device.type == "cpu" and supported and torch.backends.mkldnn.is_available():
        weight = mkldnn._reorder_linear_weight(b.t().contiguous(), n)
        found.append(functools.partial(mkldnn._linear_pointwise, a, weight, None, "none", [], ""))
    return found


def silu_rate(device: torch.device, limit: float) -> float:
    """Return values of SiLU per second in float32, on values in the cache: the best of PyTorch's and of ours.

    Ours is `pointwise_conv` of one channel, which adds a multiply-add to each value.
    """
    threads = torch.get_num_threads()
    values = torch.randn(threads * 2**17, device=device)
    out = torch.empty_like(values)
    rates = [values.numel() / best_seconds(lambda: torch.ops.aten.silu.out(values, out=out), device, 300, limit)]
    x = torch.randn(1, 1, 64, threads * 64, device=device)
    weight, bias = torch.randn(256, 1, device=device), torch.randn(256, device=device)
    for backend in ops.BACKENDS.values():
        if not backend.not_supported_reasons("pointwise_conv", ([x], [weight], [bias], ["silu"])):
            conv = functools.partial(backend.supported["pointwise_conv"], [x], [weight], [bias], ["silu"])
            seconds = best_seconds(conv, device, 300, limit)
            rates.append(256 * x.numel() / seconds)
    return max(rates)


def sgemm_rate(repeats: int = 7, n: int = 768) -> float:
    """Return the FLOP/s of float32 matrix multiplication on the CPU now: a median, to compare rounds of a run.

    By the faster library, see :func:`products`.
    """
    product, times = _fastest_sgemm(n), []
    for _ in range(2 + repeats):  # the first two wake the threads and the core
        start = time.perf_counter()
        product()
        times.append(time.perf_counter() - start)
    return 2 * n**3 / median(times[2:])


@functools.cache
def _fastest_sgemm(n: int) -> Callable[[], object]:
    cpu = torch.device("cpu")
    return min(products(cpu, torch.float32, n), key=lambda product: best_seconds(product, cpu, 20, 1.0))


class TrafficMode(TorchDispatchMode):
    """Counts the bytes that an unfused execution moves: every operator reads its inputs and writes its outputs once.

    Views move nothing. A HyperSeg operator counts as one, whatever it does inside.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self.operators = 0
        self.uncounted_flops: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet = func._overloadpacket
        if not func.is_view and packet.__name__ not in MOVES_NOTHING:
            inputs = list(tree_leaves((args, kwargs)))
            written = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
            storages = {t.untyped_storage()._cdata for t in inputs if isinstance(t, torch.Tensor)}
            # `reshape`, `to` and `contiguous` may return their own input: then nothing moved.
            aliases = all(t.untyped_storage()._cdata in storages for t in written) and not func._schema.is_mutable
            if not (written and aliases):
                self.bytes += tensor_bytes(inputs) + tensor_bytes(written)
                self.operators += 1
        if func.namespace in NAMESPACES and packet not in flop_registry:
            self.uncounted_flops.add(str(packet))
        return out


class FunctionsMode(TorchDispatchMode):
    """Counts values of `FUNCTIONS`, in a HyperSeg operator those of its definition in plain PyTorch."""

    def __init__(self) -> None:
        super().__init__()
        self.values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._opname
        # Gradients are not looked into: no operator with one has such a function.
        if func.namespace in NAMESPACES and name in reference.SUPPORTED and not name.endswith("_backward"):
            with self:
                return reference.SUPPORTED[name](*args)
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket.__name__ in FUNCTIONS:
            self.values += out.numel()
        return out


def count_functions(step: Callable[[], object]) -> int:
    """Return how many values of SiLU and sigmoid a step computes."""
    functions = FunctionsMode()
    with torch.no_grad(), functions:
        step()
    return functions.values


@dataclass(frozen=True)
class Counts:
    """Counted work of one step.

    Attributes:
        flops: two per multiply-add, of convolutions and matrix multiplications.
        unfused_bytes: see `TrafficMode`.
        operators: PyTorch and HyperSeg operators that moved bytes.
        uncounted: HyperSeg operators without a FLOP formula.
    """

    flops: int
    unfused_bytes: int
    operators: int
    uncounted: list[str]


def count(step: Callable[[], object]) -> Counts:
    """Count the work of one eager step."""
    traffic = TrafficMode()
    flops = FlopCounterMode(display=False)
    with torch.no_grad(), flops, traffic:
        step()
    return Counts(flops.get_total_flops(), traffic.bytes, traffic.operators, sorted(traffic.uncounted_flops))
