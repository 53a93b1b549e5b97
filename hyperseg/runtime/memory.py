"""Memory: kept by the C library for the next frame; and what it looks like when there is not enough."""

import ctypes
import functools
import logging
import os
import sys

import torch

logger = logging.getLogger("hyperseg.runtime")

# malloc.h of glibc
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3

# torch has a class for a full GPU; a full host, and a full GPU within a native operator, come in words only.
_FULL = ("can't allocate memory", "not enough memory", "out of memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the memory of a GPU or of the host was not enough."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _FULL)


@functools.cache
def keep_freed_memory() -> bool:
    """Have malloc keep what the process frees, up to its largest use so far or 1 GiB; whether that could be arranged.

    A frame allocates maps of tens of megabytes. By default glibc maps them afresh and gives them back, and the kernel
    clears every page at its first touch: on a virtual machine that took longer than the arithmetic. Linux with glibc
    only; HYPERSEG_KEEP_MEMORY=0 leaves the process as it is. It concerns the whole process, and memory that is still
    kept serves every later tensor.
    """
    if os.environ.get("HYPERSEG_KEEP_MEMORY") == "0" or not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # musl has none
        return False
    # First: a glibc that refuses it would be left with its smallest threshold by the others. Older ones take 32 MB.
    if not (mallopt(_MMAP_THRESHOLD, 2**30) or mallopt(_MMAP_THRESHOLD, 2**25)):
        return False
    kept = bool(mallopt(_TRIM_THRESHOLD, 2**30) and mallopt(_TOP_PAD, 2**26))
    logger.debug("malloc keeps freed memory: %s", kept)
    return kept
