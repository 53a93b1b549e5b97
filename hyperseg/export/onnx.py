"""ONNX: a network from uint8 frames to labels as standard operators, for runtimes without HyperSeg."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from hyperseg import ops
from hyperseg._extras import require
from hyperseg.models import HyperSeg
from hyperseg.models.sizes import pixel_affine, scale_pixels
from hyperseg.models.wrappers import unwrap
from hyperseg.ops import OPERATORS, reference

OUTPUTS = ("labels", "logits")


class FrameToLabels(nn.Module):
    """The plain module with normalisation before it and argmax at full size after it.

    Takes uint8 RGB frames ``[N, H, W, 3]``, returns uint8 labels ``[N, H, W]``.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, model: HyperSeg) -> None:
        super().__init__()
        self.model = model
        scale, shift = pixel_affine(model.config.mean, model.config.std)
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def logits(self, frames: Tensor) -> Tensor:
        """Return float32 logits ``[N, num_classes, H, W]`` of uint8 frames ``[N, H, W, 3]``."""
        return self.model(scale_pixels(frames, self.scale, self.shift).contiguous())

    def forward(self, frames: Tensor) -> Tensor:
        return self.logits(frames).argmax(1).to(torch.uint8)


class _LabelsAndLogits(FrameToLabels):
    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        logits = self.logits(frames)
        return logits.argmax(1).to(torch.uint8), logits


def export_program(model: HyperSeg, frames: Tensor) -> ExportedProgram:
    """Export a network for frames of one size, without HyperSeg operators: each is replaced by its reference.

    The reference's grouped convolution for the dynamic depthwise step is also the fastest form for ONNX Runtime and
    OpenVINO: both were slower with nine shifted multiplications instead.

    Args:
        model: in eval mode, float32, on the CPU; also in DataParallel, AveragedModel or torch.compile.
        frames: an example, uint8 RGB ``[N, H, W, 3]``; its shape is fixed in the program.

    Returns:
        A program from uint8 frames to (uint8 labels ``[N, H, W]``, float32 logits ``[N, num_classes, H, W]``).
    """
    with torch.no_grad(), ops.use_backend("reference"):
        program = torch.export.export(_LabelsAndLogits(unwrap(model)).eval(), (frames,))
        forward = [name for name in OPERATORS if not name.endswith("_backward")]
        table = {getattr(torch.ops.hyperseg, name).default: getattr(reference, name) for name in forward}
        return program.run_decompositions(table)


def write_onnx(program: ExportedProgram, files: Mapping[str, Path]) -> None:
    """Write a program of :func:`export_program` as ONNX files with one output each.

    Args:
        program: of labels and logits.
        files: from ``"labels"``, ``"logits"`` or both to the file with that output.

    Raises:
        ValueError: there is no such output.
        MissingPackageError: onnx or onnxscript is not installed.
    """
    if unknown := files.keys() - set(OUTPUTS):
        raise ValueError(f"the outputs are {' and '.join(OUTPUTS)}, got {', '.join(sorted(unknown))}.")
    for package in ("onnx", "onnxscript"):
        require(package, "onnx", "ONNX")
    with _quiet_exporter():
        exported = torch.onnx.export(program, dynamo=True, verbose=False)
    assert exported is not None
    outputs = exported.model.graph.outputs
    by_name = dict(zip(OUTPUTS, list(outputs), strict=True))
    for name, path in files.items():
        outputs[:] = [by_name[name]]
        exported.save(path)


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence the exporter's logging, stdout and warnings; exceptions pass through."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
