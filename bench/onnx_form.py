"""A network from uint8 frame to labels, in the reference operators' own PyTorch: the form that other runtimes get."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

import hyperseg
from bench.inputs import normalise
from bench.runtimes import LABELS, LOGITS
from hyperseg.ops import OPERATORS, reference


class FrameToLabels(nn.Module):
    """The plain module with what surrounds it in use: normalisation before it, argmax at full size behind it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(model.config, name)))

    def logits(self, frames: Tensor) -> Tensor:
        return self.model(normalise(frames, self.mean, self.std))

    def forward(self, frames: Tensor) -> Tensor:
        return self.logits(frames).argmax(1).to(torch.uint8)


class LabelsAndLogits(FrameToLabels):
    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.logits(frames)
        return logits.argmax(1).to(torch.uint8), logits


def export(model: nn.Module, frames: Tensor) -> ExportedProgram:
    """(labels, logits) of frames of this size, our operators replaced by what they are made of.

    The reference's grouped convolution for the dynamic depthwise step is also the fastest form for the runtimes: with
    nine shifted products instead both were slower.
    """
    with torch.no_grad(), hyperseg.ops.use_backend("reference"):
        program = torch.export.export(LabelsAndLogits(model).eval(), (frames,))
        forward = [name for name in OPERATORS if not name.endswith("_backward")]
        table = {getattr(torch.ops.hyperseg, name).default: getattr(reference, name) for name in forward}
        return program.run_decompositions(table)


def write(program: ExportedProgram, folder: Path) -> None:
    """Two ONNX files: the graph that answers with labels, and the same with its logits."""
    with _silence():
        onnx_program = torch.onnx.export(program, dynamo=True, verbose=False)
    outputs = onnx_program.model.graph.outputs
    labels, logits = list(outputs)
    for path, kept in ((LABELS, labels), (LOGITS, logits)):
        outputs[:] = [kept]
        onnx_program.save(folder / path)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Without what the exporter says about itself in three ways; its errors are raised."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
