"""The backends: one file each, with what it needs of the machine, the operators it supports, and its limits.

To add one: copy ``triton.py``, list it in ``BACKENDS``, give it a place in ``hyperseg/ops/_dispatch.py``.
"""

from hyperseg.ops.backends.backend import Backend
from hyperseg.ops.backends.cpp import CPP
from hyperseg.ops.backends.cuda import CUDA
from hyperseg.ops.backends.reference import REFERENCE
from hyperseg.ops.backends.triton import TRITON

__all__ = ["BACKENDS", "Backend"]

BACKENDS: dict[str, Backend] = {backend.name: backend for backend in (CPP, CUDA, TRITON, REFERENCE)}
