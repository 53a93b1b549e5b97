"""Inference runtimes that take an ONNX file. NumPy in and out, no torch: a process that measures one has only that one.

Both get the same number of threads, and neither may keep a core busy when it has nothing to do: its frames alternate
with those of others in one process.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

Run = Callable[[Any], list[Any]]  # a uint8 frame [N, H, W, 3] -> the outputs of the file

LABELS, LOGITS = "labels.onnx", "logits.onnx"  # one output each, so that nobody is timed copying scores

INSTALL = "pip install 'hyperseg[peers]' (or onnx, onnxscript, onnxruntime, openvino)"
NEEDS = {
    "onnxruntime": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino"),
}


def missing(runtime: str) -> str | None:
    """A sentence if something that it takes is not installed."""
    absent = [name for name in NEEDS.get(runtime, ()) if importlib.util.find_spec(name) is None]
    return f"{runtime} needs {' and '.join(absent)}, not installed here: {INSTALL}." if absent else None


def version(runtime: str) -> str:
    return importlib.metadata.version(runtime)


def onnxruntime(path: Path, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    # By default its threads spin between two operators, which is fast, and for some 30 ms after the last one, which
    # takes a core from whoever comes next. This ends the spinning with the frame; within the frame it stays.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (frames,) = session.get_inputs()
    return lambda array: session.run(None, {frames.name: array})


def openvino(path: Path, threads: int) -> Run:
    import openvino

    # TBB's threads sleep as soon as a frame is done: no setting is needed for that.
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",  # else bfloat16 where the CPU has it
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
    }
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    request = compiled.create_infer_request()

    def run(array: Any) -> list[Any]:
        results = request.infer([array], share_inputs=True, share_outputs=True)
        return [results[output] for output in compiled.outputs]

    return run


RUNTIMES = {"onnxruntime": onnxruntime, "openvino": openvino}
