"""The backends: one file each, with what it needs of the machine, the operators it supports, and its limits.

``dispatch.py`` chooses one for each call. To add a backend: copy ``triton.py``, then list it in ``BACKENDS`` and in
``PREFERENCE``, both in ``dispatch.py``.
"""

from hyperseg.ops.backends.backend import Backend
from hyperseg.ops.backends.dispatch import BACKENDS, BackendError, chosen, has_kernel, named_backend, use_backend

__all__ = ["BACKENDS", "Backend", "BackendError", "chosen", "has_kernel", "named_backend", "use_backend"]
