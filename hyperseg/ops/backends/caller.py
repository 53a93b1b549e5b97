"""Values that belong to the calling thread and to the backward passes that it starts.

Autograd runs the backward pass of CUDA tensors, and deeply nested ones on the CPU, on threads of its own. It gives them
PyTorch's thread-local state of the thread that called ``backward``. The functions that store a Python object there are
private, so a version of torch may lack them. Then a thread-local variable is used, which autograd's threads do not see.

``put(key, value)``, ``get(key)`` (an error if nothing was put) and ``has(key)``; keys are unique in the process.
"""

import ctypes
import sys
import threading
from typing import Any

try:
    from torch._C import _get_obj_in_tls as get
    from torch._C import _is_key_in_tls as has
    from torch._C import _stash_obj_in_tls as _stash
except ImportError:
    _local = threading.local()

    def has(key: str) -> bool:
        return hasattr(_local, key)

    def get(key: str) -> Any:
        return getattr(_local, key)

    def put(key: str, arg: Any) -> None:
        setattr(_local, key, arg)

else:
    _probe: list[None] = []  # it stays alive as long as this thread's state refers to it
    _references = sys.getrefcount(_probe)
    _stash("hyperseg.probe", _probe)
    _owns = sys.getrefcount(_probe) > _references

    def put(key: str, arg: Any) -> None:
        # torch 2.11 takes the caller's reference instead of one of its own, and gives it back when it is replaced.
        if not _owns:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(arg))
        _stash(key, arg)


__all__ = ["get", "has", "put"]
