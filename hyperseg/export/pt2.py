"""A program of torch.export with our operators inside, for Python with PyTorch and hyperseg."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import hyperseg
from hyperseg._files import printable
from hyperseg._text import brief
from hyperseg.export.common import (
    Check,
    Exported,
    ExportError,
    Options,
    Reference,
    check_target,
    device_of,
    network_of,
    require_agreement,
    tracing,
)
from hyperseg.export.network import NETWORKS, ExportedNetwork
from hyperseg.export.sidecar import describe_program, finish, read_sidecar
from hyperseg.models import HyperSeg
from hyperseg.models.synthetic import probe_frames
from hyperseg.runtime.arguments import Taker, check_frames
from hyperseg.runtime.engine import fold_for, fused_operators


def export_pt2(
    model: nn.Module,
    file: str | os.PathLike[str],
    size: tuple[int, int] | None = None,
    batch: int | None = None,
    returns: str = "labels",
    precision: str = "float32",
    device: str | torch.device = "cpu",
    check: bool = True,
    overwrite: bool = False,
    source: str | None = None,
) -> Exported:
    """Write a network as a program of torch.export: the folded network that an engine runs, with our operators.

    :func:`load_pt2` loads it where hyperseg is installed. Backends are chosen when it runs, as in an engine.

    Args:
        model: as in :func:`hyperseg.build_engine`; it is copied, not changed.
        file: to write, usually ``.pt2``; ``FILE.json`` is written too.
        size: (H, W) of the frames; default: the network's published resolution.
        batch: frames per call; None: any number.
        returns: ``"labels"``, uint8 ``[N, H, W]``; or ``"logits"``, float32 ``[N, num_classes, H, W]``.
        precision: ``"float32"``, ``"float16"`` or ``"bfloat16"``, of weights and maps.
        device: that it runs on, ``"cpu"`` or ``"cuda"``.
        check: run it and compare it with the network.
        overwrite: replace existing files.
        source: where the weights come from, for the sidecar.

    Raises:
        ExportError: it cannot be traced or written, or does not match the network; nothing is written then.
        TypeError, ValueError: as in :func:`hyperseg.build_engine`.
    """
    network = network_of(model)
    where = device_of(device)
    options = Options.of(
        "pt2",
        network,
        size,
        batch,
        returns=returns,
        precision=precision,
        device=where.type,
        check=check,
        overwrite=overwrite,
        source=source,
    )
    check_target(file, overwrite)
    dtype = getattr(torch, precision)

    def write(path: Path) -> tuple[Sequence[Check], Sequence[str]]:
        program = trace(network, options, dtype, where, options.returns)
        with warnings.catch_warnings():
            # "No complete tensor found": weights that an engine stores transposed, each of them complete.
            warnings.simplefilter("ignore", UserWarning)
            torch.export.save(program, path)
        if not options.check:
            return (), ("not checked, as asked",)
        programs = {options.returns: torch.export.load(path).module()}
        for kind in NETWORKS:
            if kind not in programs:
                programs[kind] = trace(network, options, dtype, where, kind).module()

        def run(kind: str, frames: Any) -> Any:
            with torch.inference_mode():
                return programs[kind](torch.from_numpy(frames).to(where)).cpu().numpy()

        name = f"torch {torch.__version__} ({where})"
        checks = Reference(network, options).compare(name, lambda f: run("labels", f), lambda f: run("logits", f))
        require_agreement(checks, precision)
        return checks, ()

    return finish(file, options, describe_program("pt2", network, options), write)


def trace(
    network: HyperSeg, options: Options, dtype: torch.dtype, device: torch.device, returns: str
) -> torch.export.ExportedProgram:
    """Trace the folded network with our operators. Raises ExportError."""
    module = engine_network(network, dtype, device, returns, dynamic=options.batch is None)
    frames = probe_frames(options.batch or 2, options.size).to(device)
    dynamic = None if options.batch else {"frames": {0: torch.export.Dim("batch", min=1, max=65536)}}
    with tracing(network, options):
        return torch.export.export(module, (frames,), dynamic_shapes=dynamic)


def engine_network(
    network: HyperSeg, dtype: torch.dtype, device: torch.device, returns: str, dynamic: bool = False
) -> ExportedNetwork:
    """Return the module from frames to labels or logits that an engine would run on this device.

    Args:
        dynamic: the batch is not fixed. The chain of blocks is left out then: where it begins depends on the batch.
    """
    fused = [operator for operator in fused_operators(device, dtype) if not (dynamic and operator == "mbconv_chain")]
    return NETWORKS[returns](fold_for(network, device, dtype, fused)).eval()


def load_pt2(file: str | os.PathLike[str]) -> nn.Module:
    """Load a program of :func:`export_pt2`: a module from uint8 frames ``[N, H, W, 3]`` to its output.

    The module raises TypeError for what is no tensor, and ValueError for frames of another size, number, dtype or
    device than the program's.

    Raises:
        ExportError: the file or its sidecar is missing or changed, or it was written by another version of hyperseg or
            a newer PyTorch.
    """
    path = Path(file)
    about = read_sidecar(path)
    if about.get("format") != "pt2":
        raise ExportError(f"{printable(path)} is {about.get('format')!r}, not pt2")
    written = about["versions"]["hyperseg"]
    if written != hyperseg.__version__:
        raise ExportError(
            f"{printable(path)} was written by hyperseg {written}, whose operators may have other arguments than those "
            f"of {hyperseg.__version__}, installed here; export it again, or install hyperseg=={written}"
        )
    try:
        module = torch.export.load(path).module()
    except Exception as error:
        raise ExportError(
            f"{printable(path)} cannot be loaded by torch {torch.__version__} ({brief(error)}); it was written by "
            f"torch {about['versions']['torch']}"
        ) from error
    height, width = about["size"]
    batch = None if about["batch"] == "dynamic" else about["batch"]
    device = torch.device(about["device"])
    taker = Taker(printable(path), another="export one", normalised="")

    def check(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        if len(given) != 1 or named:
            raise TypeError(
                f"{taker.name} takes one argument, frames, by position; got {len(given)} and {len(named)} by name."
            )
        check_frames(given[0], (height, width), batch, device, taker)
        if given[0].device.type != device.type:
            raise ValueError(
                f"{taker.name} takes frames on {device}, got frames on {given[0].device}; move them there."
            )

    module.register_forward_pre_hook(check, with_kwargs=True, prepend=True)  # before that of torch.export
    return module
