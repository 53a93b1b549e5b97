"""Devices: choice of one, and its memory."""

import ctypes
import functools
import logging
import os
import sys
from typing import Any

import torch

logger = logging.getLogger("hyperseg.runtime")

# Parameters of glibc's mallopt, from malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3

# PyTorch raises OutOfMemoryError for its own CUDA allocator; host allocations and native operators raise a plain
# RuntimeError, so we match the message.
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")


class MissingDeviceError(ValueError):
    """PyTorch does not see the requested CUDA device."""


def pick_device(device: str | torch.device | None = None) -> torch.device:
    """Return the device to run on: the CPU, or a CUDA device with its index.

    Args:
        device: ``"cpu"``, ``"cuda"`` (PyTorch's current CUDA device), ``"cuda:1"``, or ``"auto"`` or None: the current
            CUDA device if there is one, else the CPU.

    Raises:
        ValueError: no such kind of device, or neither a string nor a torch.device.
        MissingDeviceError: a ValueError; PyTorch sees no CUDA device of this index.
    """
    if device is None or device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    picked = _parsed(device)
    if picked is None:
        shown = device or repr(device)
        number = f"; GPU number {shown} is cuda:{shown}" if str(device).isdigit() else ""
        raise ValueError(f"there is no device called {shown}; give auto, cpu, cuda, cuda:1, ...{number}")
    if picked.type not in ("cpu", "cuda"):
        raise ValueError(
            f"networks run on the CPU and on CUDA devices, not on {picked}; give auto, cpu, cuda, cuda:1, ..."
        )
    if picked.type == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        built = ", built without CUDA," if torch.version.cuda is None else ""
        raise MissingDeviceError(f"there is no {picked}: PyTorch{built} sees no CUDA devices here; give cpu or auto")
    # With the index, because tensors report it too and devices are compared.
    index = torch.cuda.current_device() if picked.index is None else picked.index
    if index >= (count := torch.cuda.device_count()):
        raise MissingDeviceError(f"there is no {picked}: PyTorch sees {count} CUDA devices here; give cpu or auto")
    return torch.device("cuda", index)


def _parsed(device: Any) -> torch.device | None:
    """Return what PyTorch makes of a string; None if that is nothing. Numbers have changed their meaning in PyTorch."""
    if isinstance(device, torch.device):
        return device
    try:
        return torch.device(device) if isinstance(device, str) else None
    except RuntimeError:
        return None


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the error means that GPU or host memory ran out."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


@functools.cache
def keep_freed_memory() -> bool:
    """Make malloc keep freed pages for later allocations, up to 1 GiB; return whether that worked.

    A frame allocates feature maps of tens of megabytes. By default glibc maps them anew each time and unmaps them
    after use, and the kernel clears every page on first touch: on a virtual machine that took longer than the
    arithmetic. The setting concerns the whole process. It needs Linux with glibc; HYPERSEG_KEEP_MEMORY=0 turns it off.
    """
    if os.environ.get("HYPERSEG_KEEP_MEMORY") == "0" or not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # musl has none
        return False
    # This one first: if glibc rejects it, the other two would leave the smallest threshold. Older glibc takes 32 MB.
    if not (mallopt(_MMAP_THRESHOLD, 2**30) or mallopt(_MMAP_THRESHOLD, 2**25)):
        return False
    kept = bool(mallopt(_TRIM_THRESHOLD, 2**30) and mallopt(_TOP_PAD, 2**26))
    logger.debug("malloc keeps freed memory: %s", kept)
    return kept
