"""The formats: a line each. A format is a module of this folder with a function `export_<name>`.

Its first arguments are those of :class:`hyperseg.export.common.Options`; `Format.options` names the others. The module
checks them, traces a network of `network.py`, and hands the rest to :func:`hyperseg.export.common.finish`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hyperseg.export.common import Exported


@dataclass(frozen=True)
class Format:
    """A format.

    Attributes:
        name: on the command line, and of its module.
        suffix: usual suffix of its files.
        runs_in: what loads it, for the help.
        precisions: that it can be written in.
        devices: kinds of devices that a program is made for; empty: it runs on any.
        options: arguments of its function beyond those that all formats have.
    """

    name: str
    suffix: str
    runs_in: str
    precisions: tuple[str, ...]
    devices: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    def function(self) -> Callable[..., "Exported"]:
        """Return the function that writes it."""
        function: Callable[..., Exported] = getattr(
            import_module(f"hyperseg.export.{self.name}"), f"export_{self.name}"
        )
        return function


FORMATS = {
    each.name: each
    for each in (
        Format(
            "onnx",
            ".onnx",
            "ONNX Runtime, OpenVINO, TensorRT",
            precisions=("float32", "float16", "int8"),
            options=("lowering", "calibration"),
        ),
        Format(
            "pt2",
            ".pt2",
            "PyTorch with hyperseg: torch.export, our operators inside",
            precisions=("float32", "float16", "bfloat16"),
            devices=("cpu", "cuda"),
        ),
    )
}
