"""The sidecar `FILE.json` of a program, and the one way in which both are written: complete, checked, or not at all."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import hyperseg
from hyperseg._files import atomic_writes, printable
from hyperseg._text import brief
from hyperseg.data.labels import label_set_of
from hyperseg.export.common import Check, Exported, ExportError, Options, check_target, sidecar_of
from hyperseg.models import HyperSeg
from hyperseg.models.state import weights_hash

VERSION = 1


def describe_program(
    format: str, network: HyperSeg, options: Options, packages: Sequence[str] = (), **details: Any
) -> dict[str, Any]:
    """Return what is known of a program before it is written.

    Args:
        packages: that wrote it, beside hyperseg and torch; their versions are recorded.
        details: entries of the format alone.
    """
    config, table = network.config, label_set_of(network.config)
    batch: int | str = "dynamic" if options.batch is None else options.batch
    first, (height, width) = "N" if options.batch is None else options.batch, options.size
    if options.returns == "labels":
        output = {"name": "labels", "dtype": "uint8", "layout": "NHW", "shape": [first, height, width]}
    else:
        shape = [first, config.num_classes, height, width]
        output = {"name": "logits", "dtype": "float32", "layout": "NCHW", "shape": shape}
    return {
        "sidecar": VERSION,
        "format": format,
        "network": {"name": config.name, "config": config.to_dict()},
        "classes": list(table.classes),
        "palette": [list(color) for color in table.colors],
        "size": [height, width],
        "batch": batch,
        "input": {
            "name": "frames",
            "dtype": "uint8",
            "layout": "NHWC RGB",
            "shape": [first, height, width, 3],
        },
        "output": output,
        "normalisation": {
            "mean": list(config.mean),
            "std": list(config.std),
            "where": "in the program, which takes pixels from 0 to 255",
        },
        "precision": options.precision,
        "device": options.device,
        "versions": {
            "hyperseg": hyperseg.__version__,
            "torch": torch.__version__,
            **{name: metadata.version(name) for name in packages},
        },
        "weights": {"source": options.source, "sha256": weights_hash(network)},
        **details,
    }


def finish(
    file: str | os.PathLike[str],
    options: Options,
    about: dict[str, Any],
    write: Callable[[Path], tuple[Sequence[Check], Sequence[str]]],
) -> Exported:
    """Write a program and its sidecar, both or neither.

    Args:
        about: from :func:`describe_program`.
        write: writes the program to a temporary file with the suffix of ``file``, and returns its checks and
            :attr:`Exported.notes`. What it raises leaves nothing.

    Raises:
        ExportError: a file cannot be written.
    """
    target = check_target(file, options.overwrite)
    sidecar = sidecar_of(target)
    try:
        with atomic_writes([target, sidecar], durable=True) as (program, text):
            checks, notes = write(program)
            about = {
                **about,
                "file": target.name,
                "bytes": program.stat().st_size,
                "sha256": _sha256(program),
                "checks": [dataclasses.asdict(check) for check in checks],
                "notes": list(notes),
            }
            written = json.dumps(about, indent=2, allow_nan=False)
            text.write_text(written + "\n", encoding="ascii")
    except OSError as error:
        raise ExportError(f"{printable(target)} cannot be written ({brief(error)})") from error
    return Exported(target, sidecar, json.loads(written), tuple(checks), tuple(notes))


def read_sidecar(file: Path) -> dict[str, Any]:
    """Return the sidecar of a program, if the program is the one that it describes.

    Raises:
        ExportError: it is missing or damaged, or the program was changed.
    """
    sidecar = sidecar_of(file)
    try:
        about = json.loads(sidecar.read_bytes())
        changed = about["sha256"] != _sha256(file)
    except OSError as error:
        name = printable(file if sidecar.exists() else sidecar)
        raise ExportError(f"{name} cannot be read ({brief(error)}); a program and its .json belong together") from None
    except (ValueError, TypeError, KeyError) as error:
        raise ExportError(f"{printable(sidecar)} is damaged, or something else ({brief(error)})") from None
    if changed:
        raise ExportError(
            f"{printable(file)} is not the file that {printable(sidecar.name)} describes: SHA-256 differs"
        )
    found: dict[str, Any] = about
    return found


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()
