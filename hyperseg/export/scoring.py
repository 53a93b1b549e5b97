"""Scores of written programs: a labeller for :func:`hyperseg.evaluation.evaluate` that runs an ONNX file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hyperseg._extras import require
from hyperseg.data.dataset import Item
from hyperseg.export.common import ExportError
from hyperseg.export.runtimes import RUNTIMES
from hyperseg.export.sidecar import read_sidecar
from hyperseg.ops import upsample_argmax

Prepared = tuple[np.ndarray, tuple[int, int]]


class OnnxLabeller:
    """Labels images by an ONNX file in ONNX Runtime or OpenVINO, on the CPU, one at a time.

    Images of another size than the program's are resized to it (bilinear, antialiased), and its output back: logits
    bilinearly, labels to the nearest pixel, which loses a little at borders: give ``returns="logits"`` then.

    Args:
        file: of :func:`hyperseg.export.export_onnx`.
        runtime: ``"onnxruntime"`` or ``"openvino"`` (in float32 where the file does not say otherwise).

    Raises:
        ExportError: the file or its sidecar is missing or changed, or takes more than one frame.
        MissingPackageError: the runtime is not installed.
        ValueError: there is no such runtime.
    """

    reads_images = True
    batch = 1
    device = torch.device("cpu")

    def __init__(self, file: str | os.PathLike[str], runtime: str = "onnxruntime") -> None:
        if runtime not in RUNTIMES:
            raise ValueError(f"runtime is {runtime!r}; there are {' and '.join(RUNTIMES)}")
        self.about = read_sidecar(Path(file))
        if self.about["batch"] not in ("dynamic", 1):
            raise ExportError(f"{file} takes {self.about['batch']} frames at once; export it with another batch")
        if runtime == "openvino":
            require("openvino", "peers", "scoring")
        else:
            require("onnxruntime", "onnx", "scoring")
        self._run = RUNTIMES[runtime].load(Path(file))

    def prepare(self, item: Item, image: np.ndarray | None, size: tuple[int, int]) -> Prepared:
        """Resize an image (uint8 [H, W, 3]) for the program; `size` is its own (H, W)."""
        assert image is not None, item
        height, width = self.about["size"]
        if image.shape[:2] != (height, width):
            image = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
        return np.ascontiguousarray(image[None]), size

    def labels(self, images: Sequence[Prepared]) -> list[Tensor]:
        """Return the labels of prepared images, uint8 [H, W] of each one's own size."""
        found = []
        for frame, size in images:
            output = torch.from_numpy(np.array(self._run(frame)))
            if self.about["output"]["name"] == "logits":
                output = upsample_argmax(output, size)
            elif tuple(output.shape[1:]) != size:
                output = torch.nn.functional.interpolate(output[None].float(), size, mode="nearest")[0].to(torch.uint8)
            found.append(output[0])
        return found
