"""Networks in the forms that other runtimes load: one module per format, `formats.py` lists them.

    import hyperseg
    from hyperseg.export import export_onnx

    exported = export_onnx(hyperseg.load("my-network"), "my-network.onnx", size=(512, 1024))
    print(exported.checks)  # what ONNX Runtime and OpenVINO make of it, if they are installed

A program takes uint8 RGB frames `[N, H, W, 3]` of one size and returns labels, uint8 `[N, H, W]`, or logits; it pads
and normalises. It is run and compared with the network before it is written, and `FILE.json` describes it
(`sidecar.py`).
`common.py` has what the formats share, `network.py` the network that they trace.
"""

from typing import TYPE_CHECKING

from hyperseg._lazy import on_first_use
from hyperseg.export.formats import FORMATS, Format

if TYPE_CHECKING:
    from hyperseg.export.aoti import export_aoti, load_aoti
    from hyperseg.export.common import Check, Exported, ExportError
    from hyperseg.export.onnx import export_onnx
    from hyperseg.export.pt2 import export_pt2, load_pt2
    from hyperseg.export.scoring import OnnxLabeller

__all__ = [
    "FORMATS",
    "Check",
    "ExportError",
    "Exported",
    "Format",
    "OnnxLabeller",
    "export_aoti",
    "export_onnx",
    "export_pt2",
    "load_aoti",
    "load_pt2",
]

# Those that need PyTorch; the command reads the formats for its help.
__getattr__, __dir__ = on_first_use(
    __name__,
    {
        "Check": "common",
        "ExportError": "common",
        "Exported": "common",
        "OnnxLabeller": "scoring",
        "export_aoti": "aoti",
        "export_onnx": "onnx",
        "export_pt2": "pt2",
        "load_aoti": "aoti",
        "load_pt2": "pt2",
    },
)
