"""What the formats share: options, errors, results, and the comparison of a program with its network."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hyperseg._files import printable
from hyperseg._text import brief
from hyperseg.export.formats import FORMATS
from hyperseg.models import HyperSeg, check_finite, unwrap
from hyperseg.models.sizes import normalise
from hyperseg.models.synthetic import probe_frames
from hyperseg.ops._arguments import as_int, describe
from hyperseg.runtime.arguments import check_has_values
from hyperseg.runtime.device import MissingDeviceError, pick_device
from hyperseg.runtime.parity import TOLERANCES, compare_logits, reference_logits

RETURNS = ("labels", "logits")
# Least share of equal labels in a program's check; int8 has none, because its loss is a property of the weights.
LEAST_AGREEMENT = {
    "float32": 0.999,
    "float16": TOLERANCES[torch.float16].agreement / 100,
    "bfloat16": TOLERANCES[torch.bfloat16].agreement / 100,
}
LARGEST_SIDE = 16384

Run = Callable[[np.ndarray], np.ndarray]  # frames -> labels or logits


class ExportError(RuntimeError):
    """A network cannot be exported so, or the program does not match it. The message says what to do."""


@dataclass(frozen=True)
class Check:
    """Comparison of a program, run by its runtime, with the module in float32 with the reference operators.

    Attributes:
        runtime: and its version.
        batch: frames per call.
        frames: number of frames compared.
        agreement: fraction of pixels with the module's label.
        relative_rms, relative_max: errors of the logits, see :class:`hyperseg.runtime.parity.Tolerance`.
    """

    runtime: str
    batch: int
    frames: int
    agreement: float
    relative_rms: float
    relative_max: float

    def __str__(self) -> str:
        return (
            f"{self.runtime}, batch {self.batch}: {100 * self.agreement:.3f} % of labels agree, "
            f"logits differ by {self.relative_rms:.1e} (RMS) and {self.relative_max:.1e} (largest) of their size"
        )


@dataclass(frozen=True)
class Exported:
    """A written program.

    Attributes:
        file: the program.
        sidecar: its description, ``FILE.json``.
        about: the contents of the sidecar.
        checks: what was compared.
        notes: further results, and runtimes in which it was not run, with the reason.
    """

    file: Path
    sidecar: Path
    about: dict[str, Any]
    checks: tuple[Check, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Options:
    """The arguments that every format has; :meth:`of` checks them.

    Attributes:
        size: (H, W) of the frames.
        batch: frames per call; None: any number.
        returns: ``"labels"`` or ``"logits"``.
        precision: of weights and maps.
        device: that the program is made for.
        check: run the program before it is written, and compare it.
        overwrite: replace existing files.
        source: where the weights come from, a text for the sidecar.
    """

    size: tuple[int, int]
    batch: int | None = None
    returns: str = "labels"
    precision: str = "float32"
    device: str = "cpu"
    check: bool = True
    overwrite: bool = False
    source: str | None = None

    @classmethod
    def of(cls, format: str, model: HyperSeg, size: Any, batch: Any, **others: Any) -> Options:
        """Return the options, checked; ``size`` None is the network's published resolution.

        Raises:
            ValueError: one is out of range or of a wrong type.
        """
        size = model.config.resolution if size is None else size
        sides = [as_int(side) for side in size] if isinstance(size, Sequence) and not isinstance(size, str) else []
        if len(sides) != 2 or not all(side is not None and 1 <= side <= LARGEST_SIDE for side in sides):
            raise ValueError(f"size must be (height, width), each 1 to {LARGEST_SIDE}, got {describe(size)}.")
        count = None if batch is None else as_int(batch)
        if batch is not None and (count is None or not 1 <= count <= 65536):
            raise ValueError(
                f"batch must be a number of frames from 1 to 65536, or None for any, got {describe(batch)}."
            )
        options = cls((sides[0], sides[1]), count, **others)  # type: ignore[arg-type]
        if options.returns not in RETURNS:
            raise ValueError(f"returns must be one of {', '.join(RETURNS)}, got {describe(options.returns)}.")
        if options.precision not in (allowed := FORMATS[format].precisions):
            raise ValueError(
                f"precision must be one of {', '.join(allowed)} for {format}, got {describe(options.precision)}."
            )
        return options

    @property
    def batches(self) -> tuple[int, ...]:
        """Batch sizes that a program is checked with."""
        return (1, 2) if self.batch is None else (self.batch,)


def network_of(model: nn.Module) -> HyperSeg:
    """Return a copy of the network in a module, in eval mode, on the CPU, in float32, checked to have finite values.

    Raises:
        TypeError: there is not exactly one network in ``model``.
        ValueError: it has no values yet, or some that are not finite; or more classes than labels have values.
    """
    network = unwrap(model)
    check_has_values(network)
    check_finite(network)
    if network.config.num_classes > 255:
        raise ValueError(f"labels are uint8, so a network can have 255 classes, not {network.config.num_classes}.")
    return copy.deepcopy(network).to("cpu", torch.float32).eval().requires_grad_(False)


def device_of(device: str | torch.device) -> torch.device:
    """Return a device as :func:`hyperseg.runtime.device.pick_device`. Raises ExportError if it is not there."""
    try:
        return pick_device(device)
    except MissingDeviceError as error:
        raise ExportError(str(error)) from None


@contextlib.contextmanager
def tracing(network: HyperSeg, options: Options) -> Iterator[None]:
    """Trace inside, without gradients. What is raised there becomes an ExportError."""
    try:
        with torch.no_grad():
            yield
    except Exception as error:  # torch.export documents no common base
        raise ExportError(
            f"{network.config.name} ({network.config.encoder}) at {options.size[0]}x{options.size[1]} cannot be traced "
            f"by torch.export ({brief(error)}); a fixed batch (--batch 1) asks less of it"
        ) from error


@contextlib.contextmanager
def without_warnings_logged() -> Iterator[None]:
    """Silence the logging of warnings by exporters and compilers."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(disabled)


class Reference:
    """Frames, and what the module in float32 with the reference operators makes of them, one at a time.

    Args:
        frames: uint8 ``[n, H, W, 3]`` to compare; default: synthetic ones, as many as the batches need.
    """

    def __init__(self, network: HyperSeg, options: Options, frames: Tensor | None = None) -> None:
        self.options = options
        count = sum(options.batches)
        self.frames = probe_frames(count, options.size) if frames is None else frames
        config = network.config
        device = torch.device("cpu")
        self.logits = torch.cat(
            [
                reference_logits(network, normalise(frame[None], config.mean, config.std).contiguous(), device)
                for frame in self.frames
            ]
        )

    def batches(self) -> Iterator[tuple[int, slice]]:
        """Yield the batch sizes, and the frames for each."""
        start = 0
        for batch in self.options.batches:
            yield batch, slice(start, start + batch)
            start += batch

    def compare(self, runtime: str, labels: Run, logits: Run) -> list[Check]:
        """Run a program on the frames and compare it.

        Args:
            runtime: and its version.
            labels, logits: the program with either output; arrays in and out.

        Raises:
            ExportError: the shape or the type of an output is wrong.
        """
        checks = []
        for batch, members in self.batches():
            frames, expected = self.frames[members].numpy(), self.logits[members]
            found, scores = np.asarray(labels(frames)), torch.from_numpy(np.array(logits(frames)))
            shape = (batch, *self.options.size)
            if found.shape != shape or found.dtype != np.uint8 or scores.shape != expected.shape:
                raise ExportError(
                    f"{runtime} returns labels {found.dtype} {list(found.shape)} and logits {list(scores.shape)}, "
                    f"where uint8 {list(shape)} and {list(expected.shape)} are right; please report this"
                )
            parity = compare_logits(scores, expected)
            agreement = float((torch.from_numpy(found.astype(np.int64)) == expected.argmax(1)).double().mean())
            checks.append(Check(runtime, batch, batch, agreement, parity.relative_rms, parity.relative_max))
        return checks


def require_agreement(checks: Sequence[Check], precision: str) -> None:
    """Require that a program has the module's labels, as far as its precision allows. Raises ExportError."""
    for check in checks:
        least = LEAST_AGREEMENT.get(precision, 0.0)
        if not check.agreement >= least or check.relative_rms != check.relative_rms:
            hint = (
                "its weights may not fit float16; try float32"
                if precision == "float16"
                else "random weights may leave labels undetermined; with trained ones, please report this"
            )
            raise ExportError(
                f"the program does not match the network ({check}; at least {100 * least:.1f} % are expected), and is "
                f"not written: {hint}, or give check=False (--no-check)"
            )


def sidecar_of(file: Path) -> Path:
    """Return the name of a program's sidecar."""
    return file.with_name(f"{file.name}.json")


def check_target(file: str | os.PathLike[str], overwrite: bool) -> Path:
    """Check before anything is computed that a program and its sidecar can be written. Raises ExportError."""
    target = Path(file)
    name = printable(target)
    if target.is_dir() or os.fspath(file).endswith(("/", os.sep)):
        raise ExportError(f"{name} is a folder; give the name of a file")
    for each in (target, sidecar_of(target)):
        if os.path.lexists(each) and not overwrite:
            raise ExportError(f"{printable(each)} exists; give another name, or overwrite=True (--overwrite)")
    nearest = target.absolute().parent
    while not os.path.lexists(nearest):
        nearest = nearest.parent
    if not nearest.is_dir():
        raise ExportError(f"{name}: {printable(nearest)} is a file; give a name in a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ExportError(f"{name}: this user may not write to {printable(nearest)}; give another name")
    return target
