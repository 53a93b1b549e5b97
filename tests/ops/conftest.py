import os

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def faster_interpreter():
    """Make Triton's interpreter patch its language once per module instead of at every call of a device function.

    A patch takes milliseconds, and it also holds for the functions that are called later.
    """
    if os.environ.get("TRITON_INTERPRET") != "1":
        yield
        return
    from triton.runtime import interpreter

    prepared = set()

    def call(self, *args, **kwargs):
        modules = frozenset(
            id(v) for v in self.fn.__globals__.values() if v is interpreter.tl or v is interpreter.tl.core
        )
        if modules not in prepared and modules != {id(interpreter.tl)}:
            prepared.add(modules)
            interpreter._patch_lang(self.fn)
        return self.rewrite()(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter.InterpretedFunction, "__call__", call)
        yield


@pytest.fixture(autouse=True, scope="module")
def poisoned_memory():
    """Fill new memory with NaN or the largest integer, in Python and in C++, so that an unwritten output is noticed.

    HYPERSEG_POISON=0 turns this off, for tools that detect unwritten memory themselves.
    """
    if os.environ.get("HYPERSEG_POISON") == "0":
        yield
        return
    torch.use_deterministic_algorithms(True, warn_only=True)
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.utils.deterministic.fill_uninitialized_memory = filled
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True, scope="module")
def no_tf32():
    """Compute in float32 without TF32."""
    # By the older interface: torch.export reads it, and raises an error if the newer one was used before.
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
