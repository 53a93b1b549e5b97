"""Runtimes that load ONNX files, to check them; imported when they are used."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

from hyperseg.export.common import Run


@dataclass(frozen=True)
class Runtime:
    """A runtime.

    Attributes:
        package: that has it.
        load: returns a function from frames to the only output of a file.
    """

    package: str
    load: Callable[[Path], Run]

    @property
    def name(self) -> str:
        """Name and version."""
        return f"{self.package} {metadata.version(self.package)}"


def installed(package: str) -> bool:
    """Return whether a package can be imported."""
    return importlib.util.find_spec(package) is not None


def load_onnxruntime(path: Path) -> Run:
    """Load a file in ONNX Runtime, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (frames,) = session.get_inputs()
    return lambda array: session.run(None, {frames.name: array})[0]


def load_openvino(path: Path) -> Run:
    """Load a file in OpenVINO, on the CPU, without its implicit bfloat16."""
    import openvino

    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(array: np.ndarray) -> np.ndarray:
        return compiled([array])[compiled.outputs[0]]

    return run


RUNTIMES = {
    runtime.package: runtime
    for runtime in (Runtime("onnxruntime", load_onnxruntime), Runtime("openvino", load_openvino))
}
