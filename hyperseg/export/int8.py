"""Static int8 by ONNX Runtime's quantiser (QDQ), for ONNX Runtime and OpenVINO on CPUs: which nodes, by which frames.

The encoder's convolutions are quantised: weights per channel, symmetric; maps per tensor. These stay in float:

- The decoder: its weights are maps, of another range in every patch; one scale for all would lose the small ones.
- What it reads, the context head and the reductions of the features: their rounding would reach the generated weights.
- Depthwise convolutions: each channel has a range of its own, and they have few multiplications. In int8 they doubled
  the error of the logits of a network trained on CamVid (0.160 instead of 0.071, relative RMS).
- The first convolution and the squeeze-and-excite gates, which are small.
"""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from hyperseg._extras import require
from hyperseg.export.common import ExportError
from hyperseg.ops._arguments import describe

FEWEST_FRAMES = 8
_QUANTISED = re.compile(r"network\.encoder\.trunk\.(?!.*(\.se\.|conv_stem))")


def check_calibration(frames: Sequence[Tensor], size: tuple[int, int]) -> list[np.ndarray]:
    """Return calibration frames as arrays ``[1, H, W, 3]``.

    Raises:
        ValueError: there are too few, or one has another shape or type.
    """
    if len(frames) < FEWEST_FRAMES:
        raise ValueError(
            f"precision 'int8' needs calibration: at least {FEWEST_FRAMES} frames like those that the program will get "
            f"(--calibrate FOLDER), got {len(frames)}; better 32 or more"
        )
    arrays = [np.asarray(frame) for frame in frames]
    for array, frame in zip(arrays, frames, strict=True):
        if array.dtype != np.uint8 or array.shape != (*size, 3):
            raise ValueError(f"calibration frames must be uint8 [{size[0]}, {size[1]}, 3], got {describe(frame)}")
    return [np.ascontiguousarray(array[None]) for array in arrays]


def quantise(source: Path, target: Path, frames: Sequence[np.ndarray]) -> None:
    """Quantise an ONNX file by the ranges that its maps have on frames ``[1, H, W, 3]``.

    Raises:
        ExportError: ONNX Runtime cannot quantise it.
        MissingPackageError: onnxruntime is not installed.
    """
    quantization = require("onnxruntime.quantization", "onnx", "int8")
    shape_inference = require("onnxruntime.quantization.shape_inference", "onnx", "int8")
    import onnx

    with tempfile.TemporaryDirectory(prefix="hyperseg-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared = Path(folder) / "prepared.onnx"
        try:
            # Without its optimiser: that renames the weights, and the choice below goes by their names.
            shape_inference.quant_pre_process(
                str(source), str(prepared), skip_optimization=True, skip_symbolic_shape=True
            )
            nodes = convolutions(onnx.load(str(prepared)))
            quantization.quantize_static(
                str(prepared),
                str(target),
                _Reader(frames),
                quant_format=quantization.QuantFormat.QDQ,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                per_channel=True,
                reduce_range=False,
                op_types_to_quantize=["Conv"],
                nodes_to_quantize=nodes,
                calibrate_method=quantization.CalibrationMethod.MinMax,
                extra_options={"CalibMovingAverage": True},
            )
        except (RuntimeError, ValueError, TypeError) as error:
            raise ExportError(f"ONNX Runtime cannot quantise the program ({error})") from error


def convolutions(model: Any) -> list[str]:
    """Return the names of the convolutions of an ONNX model that are quantised."""
    stored = {each.name: each for each in model.graph.initializer}
    return [
        node.name
        for node in model.graph.node
        if node.op_type == "Conv" and node.input[1] in stored and _QUANTISED.match(node.input[1])
        # Not depthwise: the weights [O, I / groups, h, w] of a depthwise convolution have one input channel.
        if stored[node.input[1]].dims[1] > 1
    ]


class _Reader:
    """Frames, as ONNX Runtime's calibration reads them."""

    def __init__(self, frames: Sequence[np.ndarray]) -> None:
        self._frames: Iterator[np.ndarray] = iter(frames)

    def get_next(self) -> dict[str, np.ndarray] | None:
        frame = next(self._frames, None)
        return None if frame is None else {"frames": frame}
