"""Runtimes that are compared on the CPU, each from a uint8 frame to labels, and the memory of each in its own process.

A peer is built from a folder with the network, a frame and ONNX files, for a number of threads. Its threads wait for
work as the runtime has it by default; bench/core/turns.py times no peer before those of all others are asleep.

    python -m bench.core.peers PEER FOLDER THREADS      # prints the memory of one peer as JSON

This module imports nothing heavy at the top: a process that measures an ONNX runtime must not hold torch.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import numpy
    import torch
    from numpy.typing import NDArray

    from hyperseg.models import HyperSeg

    Frame: TypeAlias = NDArray[numpy.uint8]
    Output: TypeAlias = NDArray[Any] | torch.Tensor
    OnnxRun: TypeAlias = Callable[[Frame], list[NDArray[Any]]]  # a frame -> the outputs of an ONNX file

# Files of the folder: the network as hyperseg.save writes it, a frame, one ONNX file per output, so that no runtime is
# timed copying scores, and a package for the C++ runtime.
MODEL, FRAME, LABELS, LOGITS, PACKAGE = "model", "frame.npy", "labels.onnx", "logits.onnx", "package.pt2"
AOTI = "aoti"

INSTALL = "pip install 'hyperseg[peers]' (or onnx, onnxscript, onnxruntime, openvino)"
NEEDS = {
    "onnxruntime": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino"),
    "openvino-bf16": ("onnx", "onnxscript", "openvino"),
}
IN_BFLOAT16 = ("openvino-bf16", "engine-bf16")
MEMORY_STEPS = 3


@dataclass
class Peer:
    """A runtime with the network in it.

    Attributes:
        about: its version.
        labels: the timed function, from uint8 frames ``[N, H, W, 3]`` (NumPy) to uint8 labels ``[N, H, W]``.
        logits: the scores of those labels by the same code, not timed; None where other code would give them.
        context: entered around calls.
        dtype: that of the network's maps, which sets the tolerance: float32 or bfloat16.
    """

    name: str
    about: str
    labels: Callable[[Frame], Output]
    logits: Callable[[Frame], Output] | None
    context: Callable[[], AbstractContextManager[object]] = nullcontext
    dtype: str = "float32"


def missing(peer: str) -> str | None:
    """Return a message if packages of this peer are not installed, or if this CPU has no fast bfloat16 for it."""
    if absent := [name for name in NEEDS.get(peer, ()) if importlib.util.find_spec(name) is None]:
        return f"{peer} needs {' and '.join(absent)}, not installed here: {INSTALL}."
    if peer == AOTI and importlib.util.find_spec("hyperseg.runtime_cpp") is None:
        return f"{peer} needs hyperseg.runtime_cpp: pip install pybind11, then python setup.py build_ext."
    if peer in IN_BFLOAT16:
        from hyperseg.ops.backends import native

        if (found := native.cpu_capability()) not in native.BFLOAT16_CAPABILITIES:
            return f"{peer} needs a CPU with AVX512-BF16 or AMX; the C++ operators use {found} here."
    return None


def eager(folder: Path, threads: int) -> Peer:
    """Build the plain module with reference operators in NCHW memory, which stands for the official code."""
    import torch

    from bench.core.labeller import plain_labeller
    from bench.core.networks import inference

    model, (_, height, width, _) = _load(folder), _frame(folder).shape
    network = plain_labeller(model, model, (height, width))
    return Peer(
        "eager",
        f"torch {torch.__version__}, reference operators",
        lambda frame: network(torch.from_numpy(frame)),
        lambda frame: network.scores(torch.from_numpy(frame)),
        lambda: inference("reference"),
    )


def compiled(folder: Path, threads: int) -> Peer:
    """Compile plain PyTorch with folded norms, as the ONNX files have; our operators would hide the decoder from it."""
    import torch

    from bench.core.labeller import plain_labeller
    from bench.core.networks import inference
    from bench.core.plain import folded

    model, (_, height, width, _) = _load(folder), _frame(folder).shape
    network = torch.compile(plain_labeller(model, folded(model), (height, width)), dynamic=False, fullgraph=True)
    about = f"torch {torch.__version__}, inductor"
    return Peer("compile", about, lambda frame: network(torch.from_numpy(frame)), None, lambda: inference("reference"))


def engine(folder: Path, threads: int, dtype: str = "float32") -> Peer:
    """Build HyperSeg's engine as users do."""
    import torch

    import hyperseg
    from bench.core.networks import inference

    model = _load(folder)
    _, height, width, _ = _frame(folder).shape
    with inference("auto"):
        ours = hyperseg.build_engine(model, size=(height, width), dtype=getattr(torch, dtype), device="cpu")
    return Peer(
        "engine" if dtype == "float32" else "engine-bf16",
        f"hyperseg {hyperseg.__version__}, {ours.mode}",
        lambda frame: ours(torch.from_numpy(frame)),
        lambda frame: ours.logits(torch.from_numpy(frame)),
        lambda: inference("auto"),
        dtype,
    )


def engine_bfloat16(folder: Path, threads: int) -> Peer:
    """Build HyperSeg's engine in bfloat16."""
    return engine(folder, threads, "bfloat16")


def aoti(folder: Path, threads: int) -> Peer:
    """Load the package into the C++ runtime."""
    from hyperseg import runtime_cpp

    segmenter = runtime_cpp.Segmenter(str(folder / PACKAGE), threads=threads)
    return Peer(AOTI, f"C++ runtime, AOTInductor of torch {runtime_cpp.torch_version}", segmenter, None)


def onnxruntime(path: Path, threads: int) -> OnnxRun:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (frames,) = session.get_inputs()
    return lambda frame: session.run(None, {frames.name: frame})


def openvino(path: Path, threads: int, precision: str = "f32") -> OnnxRun:
    import openvino

    settings = {
        "INFERENCE_PRECISION_HINT": precision,  # by default bfloat16 where the CPU has it
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
    }
    compiled_model = openvino.Core().compile_model(str(path), "CPU", settings)
    request = compiled_model.create_infer_request()

    def run(frame: Frame) -> list[NDArray[Any]]:
        results = request.infer([frame], share_inputs=True, share_outputs=True)
        return [results[output] for output in compiled_model.outputs]

    return run


def openvino_bfloat16(path: Path, threads: int) -> OnnxRun:
    return openvino(path, threads, "bf16")


RUNTIMES: dict[str, Callable[[Path, int], OnnxRun]] = {
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "openvino-bf16": openvino_bfloat16,
}


def package(runtime: str) -> str:
    """Return the package of an ONNX runtime."""
    return runtime.removesuffix("-bf16")


def onnx_peer(name: str) -> Callable[[Path, int], Peer]:
    def build(folder: Path, threads: int) -> Peer:
        run = RUNTIMES[name](folder / LABELS, threads)

        def logits(frame: Frame) -> Output:
            return RUNTIMES[name](folder / LOGITS, threads)(frame)[0]

        dtype = "bfloat16" if name in IN_BFLOAT16 else "float32"
        version = importlib.metadata.version(package(name))
        return Peer(name, f"{package(name)} {version}", lambda frame: run(frame)[0], logits, dtype=dtype)

    return build


BUILDERS: dict[str, Callable[[Path, int], Peer]] = {
    "eager": eager,
    "compile": compiled,
    "onnxruntime": onnx_peer("onnxruntime"),
    "openvino": onnx_peer("openvino"),
    "openvino-bf16": onnx_peer("openvino-bf16"),
    "engine": engine,
    AOTI: aoti,
    "engine-bf16": engine_bfloat16,
}


def _load(folder: Path) -> HyperSeg:
    import hyperseg

    return hyperseg.load(folder / MODEL).eval()


def _frame(folder: Path) -> Frame:
    import numpy

    return numpy.load(folder / FRAME)


# Memory


def memory_in_process(peer: str, folder: Path, threads: int) -> dict[str, float]:
    """Return the memory of a peer in a fresh process, as `measure_memory` does.

    Raises:
        RuntimeError: the process failed; the message has the last line that it printed.
    """
    command = [sys.executable, "-m", "bench.core.peers", peer, str(folder.resolve()), str(threads)]
    # With -m the working directory comes first on the import path.
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it was stopped"])[-1]
        raise RuntimeError(f"the memory of {peer} could not be measured: {last}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure_memory(peer: str, folder: Path, threads: int) -> dict[str, float]:
    """Import, build and run a peer in this process; return its largest resident sizes in MiB after each step."""
    import numpy

    if peer in RUNTIMES:
        importlib.import_module(package(peer))
    elif peer == AOTI:
        importlib.import_module("hyperseg.runtime_cpp")  # without torch
    else:
        import torch

        import hyperseg  # noqa: F401

        torch.set_num_threads(threads)
    idle = high_water_mib()
    made = BUILDERS[peer](folder, threads)
    frame = numpy.load(folder / FRAME)
    with made.context():
        made.labels(frame)  # whatever is made on first use belongs to building
        build = high_water_mib()
        reset_high_water()
        for _ in range(MEMORY_STEPS):
            made.labels(frame)
    return {"idle_mib": idle, "build_mib": build, "run_mib": high_water_mib()}


def high_water_mib() -> float:
    """Return the largest resident size of this program so far; ru_maxrss may hold the parent's from before exec."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise OSError("/proc/self/status has no VmHWM")


def reset_high_water() -> None:
    """Trim the heap and reset VmHWM, so that the next reading is the peak of running, not of building."""
    import ctypes

    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    print(json.dumps(measure_memory(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))))
