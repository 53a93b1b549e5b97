"""ONNX: a network from uint8 frames to labels as standard operators, for runtimes without HyperSeg."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from hyperseg import ops
from hyperseg._extras import require
from hyperseg._text import brief
from hyperseg.export.common import (
    Check,
    Exported,
    ExportError,
    Options,
    Reference,
    check_target,
    network_of,
    require_agreement,
    tracing,
    without_warnings_logged,
)
from hyperseg.export.int8 import check_calibration, quantise
from hyperseg.export.lowering import LOWERINGS, lower
from hyperseg.export.network import LabelsAndLogits
from hyperseg.export.runtimes import RUNTIMES, installed
from hyperseg.export.sidecar import describe_program, finish
from hyperseg.models import HyperSeg
from hyperseg.models.synthetic import probe_frames
from hyperseg.ops._arguments import describe
from hyperseg.runtime.folding import FoldedNetwork

OUTPUTS = ("labels", "logits")
OPSET = 18  # the exporter's own; ONNX Runtime from 1.14, OpenVINO from 2023 and TensorRT from 8.6 take it


def export_onnx(
    model: nn.Module,
    file: str | os.PathLike[str],
    size: tuple[int, int] | None = None,
    batch: int | None = None,
    returns: str = "labels",
    precision: str = "float32",
    check: bool = True,
    overwrite: bool = False,
    source: str | None = None,
    lowering: str | None = None,
    calibration: Sequence[Tensor] = (),
) -> Exported:
    """Write a network as ONNX with standard operators only, and check it by the runtimes that are installed.

    The file has opset 18, one input ``frames`` and one output, ``labels`` or ``logits``. Its metadata has the sidecar's
    entries under the key ``hyperseg``.

    Args:
        model: as in :func:`hyperseg.build_engine`; it is copied, not changed.
        file: to write, usually ``.onnx``; ``FILE.json`` is written too.
        size: (H, W) of the frames; default: the network's published resolution.
        batch: frames per call; None: any number.
        returns: ``"labels"``, uint8 ``[N, H, W]``; or ``"logits"``, float32 ``[N, num_classes, H, W]``.
        precision: ``"float32"``; ``"float16"``: weights and maps; ``"int8"``: see `calibration`.
        check: run it in ONNX Runtime and OpenVINO, if they are installed, and compare it with the network.
        overwrite: replace existing files.
        source: where the weights come from, for the sidecar.
        lowering: of the depthwise step with generated weights: ``"conv"``, a grouped convolution whose weights are
            computed, which ONNX Runtime and OpenVINO run faster and which needs a fixed batch; or ``"multiply"``, nine
            products of shifted maps, which every runtime takes. Default: ``"conv"`` for one frame, else ``"multiply"``.
        calibration: frames, uint8 ``[H, W, 3]`` of ``size``, to find the ranges of an int8 program's maps.

    Raises:
        ExportError: it cannot be traced or written, or does not match the network; nothing is written then.
        MissingPackageError: onnx or onnxscript is not installed, or onnxruntime for int8.
        TypeError, ValueError: as in :func:`hyperseg.build_engine`.
    """
    network = network_of(model)
    options = Options.of(
        "onnx",
        network,
        size,
        batch,
        returns=returns,
        precision=precision,
        device="any",
        check=check,
        overwrite=overwrite,
        source=source,
    )
    lowering = lowering or ("conv" if options.batch == 1 else "multiply")
    if lowering not in LOWERINGS:
        raise ValueError(f"lowering must be one of {', '.join(LOWERINGS)}, got {describe(lowering)}.")
    if lowering == "conv" and options.batch is None:
        raise ValueError(
            "lowering 'conv' needs a fixed batch, because a convolution's number of groups is a constant of the file; "
            "give batch=1 (--batch 1), or lowering 'multiply'."
        )
    if len(calibration) and precision != "int8":
        raise ValueError(f"calibration is for precision 'int8', not {describe(precision)}; leave it out.")
    frames = check_calibration(calibration, options.size) if precision == "int8" else []
    check_target(file, overwrite)
    _require_packages()
    packages = ["onnx", "onnxscript"]
    details: dict[str, Any] = {"opset": OPSET, "lowering": lowering}
    if precision == "int8":
        require("onnxruntime", "onnx", "int8")
        packages.append("onnxruntime")
        details["calibration"] = {
            "frames": len(frames),
            "method": "MinMax, moving average",
            "quantised": "convolutions",
        }
    about = describe_program("onnx", network, options, packages, **details)

    def write(path: Path) -> tuple[Sequence[Check], Sequence[str]]:
        program = trace(network, options, lowering)
        with tempfile.TemporaryDirectory(prefix=".hyperseg-", dir=path.parent) as folder:
            both = Path(folder) / "both.onnx"
            save(program, both, about)
            if precision == "int8":
                quantise(both, both, frames)
            # The output that is not wanted is for the check only.
            files = {kind: path if kind == returns else Path(folder) / f"{kind}.onnx" for kind in OUTPUTS}
            select_outputs(both, files)
            return _check(network, options, files, frames) if options.check else ((), ("not checked, as asked",))

    return finish(file, options, about, write)


def trace(network: HyperSeg, options: Options, lowering: str) -> ExportedProgram:
    """Return a program from frames to labels and logits without HyperSeg's operators. Raises ExportError."""
    dtype = torch.float16 if options.precision == "float16" else torch.float32
    module = LabelsAndLogits(FoldedNetwork(network).to(dtype)).eval()
    # Not 1 if the batch is dynamic: torch.export takes a dimension of 1 for a constant.
    frames = probe_frames(options.batch or 2, options.size)
    dynamic = None if options.batch else {"frames": {0: torch.export.Dim("batch")}}
    with tracing(network, options), ops.use_backend("reference"):
        return lower(torch.export.export(module, (frames,), dynamic_shapes=dynamic), lowering)


def save(program: ExportedProgram, path: Path, about: Mapping[str, Any]) -> None:
    """Write a program of :func:`trace` as an ONNX file with both outputs, and the description as its metadata."""
    with _quiet_exporter():
        exported = torch.onnx.export(program, dynamo=True, verbose=False, opset_version=OPSET, optimize=False)
        assert exported is not None
        _optimise(exported.model)
    model = exported.model
    for value, name in zip([*model.graph.inputs, *model.graph.outputs], ("frames", *OUTPUTS), strict=True):
        value.name = name
    model.producer_name, model.producer_version = "hyperseg", about["versions"]["hyperseg"]
    model.metadata_props["hyperseg"] = json.dumps(about)
    exported.save(path)


def select_outputs(both: Path, files: Mapping[str, Path]) -> None:
    """Write a file with one output each, from one with both outputs; check them by ``onnx``."""
    import onnx

    for name, path in files.items():
        model = onnx.load(str(both))
        graph = model.graph
        kept = [output for output in graph.output if output.name == name]
        del graph.output[:]
        graph.output.extend(kept)
        needed, nodes = {name}, []
        for node in reversed(graph.node):  # which are sorted: a node comes after those that it reads
            if needed & set(node.output):
                needed |= set(node.input)
                nodes.append(node)
        del graph.node[:]
        graph.node.extend(reversed(nodes))
        onnx.save(model, str(path))
        onnx.checker.check_model(str(path), full_check=True)


def _optimise(model: Any) -> None:
    """Optimise as the exporter does, and compute the shapes of stored weights now, however large they are.

    TensorRT takes convolutions with stored weights, not with those that another node makes of them.
    """
    from onnxscript import optimizer

    def fold(node: Any) -> bool | None:
        return True if node.op_type in ("Unsqueeze", "Slice", "Pad") else None

    optimizer.optimize_ir(model, should_fold=fold)


def _check(
    network: HyperSeg, options: Options, files: Mapping[str, Path], calibration: Sequence[np.ndarray]
) -> tuple[list[Check], list[str]]:
    """Run the files in the runtimes that are installed and compare. Raises ExportError."""
    checks: list[Check] = []
    notes: list[str] = []
    expected: Reference | None = None
    for runtime in RUNTIMES.values():
        if not installed(runtime.package):
            notes.append(f"{runtime.package} is not installed, so the file was not run there")
            continue
        if expected is None:
            # An int8 program knows the ranges of such frames only; the first ones are as good as any.
            count = sum(options.batches)
            some = torch.from_numpy(np.concatenate(calibration[:count])) if len(calibration) >= count else None
            expected = Reference(network, options, some)
        try:
            labels, logits = (runtime.load(files[kind]) for kind in OUTPUTS)
            checks += expected.compare(runtime.name, labels, logits)
        except (RuntimeError, ValueError) as error:  # of the runtime: ONNX Runtime's errors are RuntimeErrors
            if isinstance(error, ExportError):
                raise
            raise ExportError(
                f"{runtime.name} cannot run the file ({brief(error)}), and it is not written; for another runtime give "
                "check=False (--no-check)"
            ) from error
    require_agreement(checks, options.precision)
    return checks, notes


def _require_packages() -> None:
    for package in ("onnx", "onnxscript"):
        require(package, "onnx", "ONNX")


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence the exporter's logging, stdout and warnings; exceptions pass through."""
    with without_warnings_logged(), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
