"""Fallback: run each operator by the next backend where a kernel raises an error at an engine's own shapes.

The verification (``hyperseg/verify``) runs small cases. A kernel may pass them and still fail here: Triton does not
compile it for these shapes, a launch needs more shared memory than the GPU has, the library has no machine code for it.
So an engine watches the first frame of each of its stages, operator by operator.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from hyperseg.ops.backends import dispatch, named_backend, verdicts
from hyperseg.ops.backends.verdicts import FAILED, Verdict
from hyperseg.runtime.device import is_out_of_memory
from hyperseg.runtime.errors import LostDeviceError

logger = logging.getLogger("hyperseg.runtime")


@contextlib.contextmanager
def falling_back(device: torch.device) -> Iterator[None]:
    """Run this thread's operators inside by the next backend, in ``auto``'s order, where one raises an error.

    The kernel that failed is passed over from then on by this process, whatever the arguments, and one warning is
    logged. A backend that the user named is not replaced; its error is raised, as are those of missing memory. On a
    CUDA device each call is synchronised, so that its error is found there.

    Raises:
        LostDeviceError: inside, by a call; a kernel failed such that nothing runs on the CUDA device any more. Unless
            HYPERSEG_VERIFY=0, the processes to come pass over that kernel.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # an earlier error is not that of the first operator

    def call(operator: str, *args: Any) -> Any:
        while True:
            backend, function, _ = dispatch.decide(operator, args)
            try:
                output = function(*args)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                return output
            except Exception as error:
                if named_backend() is not None or backend == "reference" or is_out_of_memory(error):
                    raise
                _exclude(operator, backend, args, device, error)

    with dispatch.watch(call):
        yield


class FirstGuarded:
    """A stage of an engine: its first call without a named backend falls back where a kernel fails.

    The others run as they are.
    """

    def __init__(self, stage: Callable[[Tensor], Tensor], device: torch.device):
        self.stage, self.device, self.seen = stage, device, False

    def __call__(self, x: Tensor) -> Tensor:
        if self.seen or named_backend() is not None:
            return self.stage(x)
        with falling_back(self.device):
            output = self.stage(x)
        self.seen = True
        return output


def _exclude(operator: str, backend: str, args: tuple[Any, ...], device: torch.device, error: Exception) -> None:
    tensors = [a for a in tree_leaves(args) if isinstance(a, Tensor)]
    # The first tensor may be uint8 frames or, of mbconv_chain, a list's.
    dtype = next((str(t.dtype)[6:] for t in tensors if t.is_floating_point()), "float32")
    first = next(iter(str(error).strip().splitlines()), "")
    reason = f"{type(error).__name__}: {first}" if first else type(error).__name__
    lost = _is_lost(device)
    with contextlib.suppress(RuntimeError) if lost else contextlib.nullcontext():
        verdicts.exclude(Verdict(operator, backend, dtype, FAILED, reason), device, machine=lost)
    call = f"{operator} of {list(tensors[0].shape)} {dtype} on {device}"
    if lost:
        later = (
            "The next process passes over it: start again."
            if verdicts.enabled()
            else "Start again, without HYPERSEG_VERIFY=0 so that it can be passed over, or with HYPERSEG_BACKEND."
        )
        raise LostDeviceError(
            f"The {backend} kernel of {call} failed, and nothing runs on the device in this process any more "
            f"({reason}). {later} Please report it with the output of `hyperseg info --verify`."
        ) from error
    logger.warning(
        "The %s kernel of %s failed and is not used in this process any more; the next backend runs this operator: %s",
        backend,
        call,
        reason,
    )


def _is_lost(device: torch.device) -> bool:
    """Return whether the CUDA context is unusable: then every call fails, as the one before did."""
    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return True
    return False
