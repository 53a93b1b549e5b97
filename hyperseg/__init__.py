"""HyperSeg (CVPR 2021): real-time semantic segmentation with patch-wise generated convolution weights."""

from pathlib import Path

__version__ = "0.1.0"

_here = Path(__file__).resolve().parent
if not (_here / "kernels").is_dir():
    # A source checkout: kernels/ lies beside hyperseg/ and an installation puts it inside.
    __path__.append(str(_here.parent))
