"""Read ``.pth`` files: tensors and plain data only, nothing in a file is executed."""

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hyperseg.models.errors import CheckpointError

# First bytes of files that are saved under the name of a checkpoint by mistake.
_IMPOSTORS = {
    b"<": "it is a web page or XML, so the download failed",
    b"version https://git-lfs": "it is a Git LFS pointer, so the file itself was not downloaded (git lfs pull)",
    b"{": "it is a text file",
    b"\x1f\x8b": "it is compressed by gzip, unpack it first",
    b"\x89HDF": "it is an HDF5 file",
}
_ZIP, _PICKLE = b"PK", b"\x80"


def read_pickle(path: Path) -> Any:
    """Return the contents of a file that ``torch.save`` wrote, on the CPU.

    Raises:
        CheckpointError: the file cannot be read, or contains anything but tensors and plain data.
    """
    if not path.exists():
        raise CheckpointError(f"{path} does not exist.")
    try:
        with torch.serialization.safe_globals(_NUMPY_SCALARS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can make the unpickler raise nearly anything
        found = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if found is None:
            raise CheckpointError(f"{path} is damaged or not a PyTorch checkpoint: {_reason(path, error)}.") from error
        raise CheckpointError(
            f"{path} was refused, and nothing in it was executed: it contains more than tensors and plain data, "
            f"namely {found[1]}."
        ) from error


def _numpy_scalars() -> list[Any]:
    """Return the globals that a pickled NumPy scalar (``best_iou``) needs, under the names of NumPy 1 and 2."""
    core = getattr(np, "_core", None) or np.core
    scalar = core.multiarray.scalar
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    return [*((scalar, name) for name in names), np.dtype, type(np.dtype(np.float64)), type(np.dtype(np.float32))]


_NUMPY_SCALARS = _numpy_scalars()


def _reason(path: Path, error: Exception) -> str:
    """Return in plain words why a file is no checkpoint; the unpickler's own messages name bytes and opcodes."""
    if isinstance(error, OSError) and error.strerror:
        return f"it cannot be read ({error.strerror})"
    try:
        with open(path, "rb") as file:
            begin = file.read(32)
    except OSError:
        return "it cannot be read"
    if not begin:
        return "it is empty"
    if begin.startswith((_ZIP, _PICKLE)):
        return "parts of it are missing or changed; copy or download it again"
    return next((what for first, what in _IMPOSTORS.items() if begin.startswith(first)), "it has another format")
