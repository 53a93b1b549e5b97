"""What is measured beside one another in bench/peers.py: a frame goes in, its labels come out.

Each builder gets the same folder (the network, its ONNX files) and the same number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import runtimes

if TYPE_CHECKING:
    from numpy.typing import NDArray

MODEL = "model"  # in the folder: as hyperseg.save writes it
FRAME = "frame.npy"


@dataclass
class Peer:
    """``labels(frame)`` is what is timed: uint8 NumPy ``[N, H, W, 3]`` -> uint8 ``[N, H, W]``, an array or a tensor.

    ``logits(frame)`` gives the scores behind those labels, by the same code, and is not timed; None where that would
    be other code than what is timed.
    """

    name: str
    about: str
    labels: Callable[[NDArray], Any]
    logits: Callable[[NDArray], Any] | None
    context: Callable[[], AbstractContextManager] = nullcontext


def eager(folder: Path, threads: int) -> Peer:
    """The plain module, reference operators, NCHW: what stands for the official code."""
    import torch

    from bench.onnx_form import FrameToLabels
    from bench.subject import settings

    network = FrameToLabels(_load(folder)).eval()
    return Peer(
        "eager",
        f"torch {torch.__version__}, reference operators",
        lambda frame: network(torch.from_numpy(frame)),
        lambda frame: network.logits(torch.from_numpy(frame)),
        lambda: settings("reference"),
    )


def compiled(folder: Path, threads: int) -> Peer:
    """torch.compile of the graph that the ONNX runtimes get: with our operators whole it would see the encoder only."""
    import torch

    from bench.onnx_form import export
    from bench.subject import settings

    graph = export(_load(folder), torch.from_numpy(_frame(folder))).module()
    network = torch.compile(lambda frames: graph(frames)[0], dynamic=False, fullgraph=True)
    labels = lambda frame: network(torch.from_numpy(frame))  # noqa: E731
    return Peer("compile", f"torch {torch.__version__}, inductor", labels, None, lambda: settings("reference"))


def engine(folder: Path, threads: int) -> Peer:
    """Ours, as its users build it."""
    import torch

    import hyperseg
    from bench.subject import settings

    model = _load(folder)
    _, height, width, _ = _frame(folder).shape
    with settings("auto"):
        ours = hyperseg.build_engine(model, size=(height, width), device="cpu")
    return Peer(
        "engine",
        f"hyperseg {hyperseg.__version__}, {ours.mode}",
        lambda frame: ours(torch.from_numpy(frame)),
        lambda frame: ours.logits(torch.from_numpy(frame)),
        lambda: settings("auto"),
    )


def onnx_runtime(name: str) -> Callable[[Path, int], Peer]:
    def build(folder: Path, threads: int) -> Peer:
        run = runtimes.RUNTIMES[name](folder / runtimes.LABELS, threads)

        def logits(frame: NDArray) -> Any:
            return runtimes.RUNTIMES[name](folder / runtimes.LOGITS, threads)(frame)[0]

        return Peer(name, f"{name} {runtimes.version(name)}", lambda frame: run(frame)[0], logits)

    return build


BUILDERS: dict[str, Callable[[Path, int], Peer]] = {
    "eager": eager,
    "compile": compiled,
    "onnxruntime": onnx_runtime("onnxruntime"),
    "openvino": onnx_runtime("openvino"),
    "engine": engine,
}


def _load(folder: Path) -> Any:
    import hyperseg

    return hyperseg.load(folder / MODEL).eval()


def _frame(folder: Path) -> NDArray:
    import numpy

    return numpy.load(folder / FRAME)
