"""Arithmetic in the dtype of the tensors: no autocast, and no TF32 or bfloat16 inside float32 operations.

Autocast belongs to a thread, so turning it off concerns no other. PyTorch's settings of float32 precision belong to the
process. They are changed only if they allow less than float32, and only while something runs that needs it.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch

Output = TypeVar("Output")

_EXACT = ("ieee", "none")  # "none": not set, and no wider setting allows less
_cudnn: Any = torch.backends.cudnn  # the stubs lack the newer attributes
_mkldnn: Any = torch.backends.mkldnn
# By device type. This is the newer of PyTorch's two interfaces, which can be read and restored whichever one the caller
# used. The older one (`allow_tf32`) raises an error once the newer one was used.
_SETTINGS: dict[str, tuple[Any, ...]] = {
    "cpu": (_mkldnn.matmul, _mkldnn.conv),
    "cuda": (torch.backends.cuda.matmul, _cudnn.conv, _cudnn.rnn),
}


class _ExactFloat32:
    """Float32 operations of one device type are exact in the process as long as one thread is inside."""

    def __init__(self, settings: tuple[Any, ...]) -> None:
        self.settings = settings
        self.lock, self.inside = threading.Lock(), 0
        self.changed: list[tuple[Any, str]] = []

    def __enter__(self) -> None:
        with self.lock:
            if self.inside == 0:
                found = [(setting, setting.fp32_precision) for setting in self.settings]
                self.changed = [(setting, value) for setting, value in found if value not in _EXACT]
                for setting, _ in self.changed:
                    setting.fp32_precision = "ieee"
            self.inside += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.inside -= 1
            if self.inside == 0:
                for setting, value in self.changed:
                    if setting.fp32_precision == "ieee":  # nobody has changed it since
                        setting.fp32_precision = "none"
                        if setting.fp32_precision != value:  # it did not come from a wider setting
                            setting.fp32_precision = value


_exact = {device: _ExactFloat32(settings) for device, settings in _SETTINGS.items()}


@contextlib.contextmanager
def exact_float32(device: torch.device) -> Iterator[None]:
    """Make float32 operations on this kind of device IEEE float32 inside, in all threads; restore the settings after.

    Blocks may overlap in several threads: the last one to end restores. Autocast is off inside, in this thread.
    """
    with _exact[device.type], torch.autocast(device.type, enabled=False):
        yield


def in_own_dtype(
    run: Callable[[torch.Tensor], Output], device: torch.device, dtype: torch.dtype
) -> Callable[[torch.Tensor], Output]:
    """Return ``run`` for tensors of ``dtype`` on ``device`` such that PyTorch's settings do not change its results."""
    kind = device.type
    exact = _exact[kind] if dtype == torch.float32 else contextlib.nullcontext()

    def run_in_own_dtype(x: torch.Tensor) -> Output:
        with exact:
            if torch.is_autocast_enabled(kind):
                with torch.autocast(kind, enabled=False):
                    return run(x)
            return run(x)

    return run_in_own_dtype
