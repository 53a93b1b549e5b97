"""What is verified, when, and what follows: see ``hyperseg/verify/__init__.py``."""

import contextlib
import logging
import threading
import warnings
from collections.abc import Iterator, Sequence

import torch

from hyperseg._files import file_lock
from hyperseg.ops import BACKENDS, OPERATORS, named_backend
from hyperseg.ops.backends import dispatch, verdicts
from hyperseg.ops.backends.verdicts import RIGHT, KernelWarning, Verdict
from hyperseg.verify.processes import Item, verify

logger = logging.getLogger("hyperseg.verify")

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# The operators that an engine calls; the others belong to training, or to networks of the user's own.
ENGINE = (
    "normalise_frames",
    "stem",
    "mbconv",
    "mbconv_chain",
    "pointwise_conv",
    "context_head",
    "generate_weights",
    "decoder_level",
    "decoder_level_argmax",
    "upsample_argmax",
)

# After so many seconds in a child, without its start, no further kernel is verified. On a CPU all of them take one or
# two, so that only a very busy machine gets there. On a GPU Triton may have many kernels to compile.
LIMITS = {"cpu": 60.0, "cuda": 15.0}
LOCK_PATIENCE = 120.0

_one_at_a_time = threading.Lock()
_done: set[tuple] = set()


def verify_kernels(
    device: torch.device, dtypes: Sequence[torch.dtype] = DTYPES, training: bool = False
) -> list[Verdict]:
    """Verify the kernels that ``auto`` takes on a device, unless that was done before on this machine.

    On a CPU every operator is verified in every dtype at once. Nothing is verified if HYPERSEG_VERIFY is 0 or a backend
    is named (``use_backend``, HYPERSEG_BACKEND). If no child process can do it, there is a warning, and the kernels are
    used unverified.

    Args:
        dtypes: those that will run, of float32, float16 and bfloat16.
        training: the operators of training too, and all gradients.

    Returns:
        The verdicts on these kernels, old and new.
    """
    if not verdicts.enabled() or named_backend() is not None or device.type not in LIMITS:
        return []
    if device.type == "cpu":
        dtypes, training = DTYPES, True
    call = (str(device), tuple(dtypes), training)
    if call in _done:  # before the lock: every engine comes here
        return []
    with _one_at_a_time:
        if call in _done:
            return []
        found: list[Verdict] = []
        try:
            found = _verify(device, dtypes, training, LIMITS[device.type], again=False)
        except (OSError, RuntimeError, ValueError) as error:  # no reason for an engine to fail
            warnings.warn(
                f"The kernels are used on {device} without having been verified there: {error}. HYPERSEG_VERIFY=0 "
                "leaves the verification out.",
                KernelWarning,
                stacklevel=3,
            )
        _done.add(call)
        return found


def verify_again(device: torch.device) -> list[Verdict]:
    """Verify all kernels that ``auto`` takes on a device, whatever was found before, and without a limit of time.

    Raises:
        Unavailable: no child process can verify them.
    """
    with _one_at_a_time:
        return _verify(device, DTYPES, training=True, seconds=None, again=True)


def _verify(
    device: torch.device, dtypes: Sequence[torch.dtype], training: bool, seconds: float | None, again: bool
) -> list[Verdict]:
    operators = [*ENGINE, *(o for o in OPERATORS if o not in ENGINE)] if training else ENGINE
    names = [str(dtype).removeprefix("torch.") for dtype in dtypes]
    known = {} if again else {v.key: v for v in verdicts.load(device)}
    if missing(operators, names, device, known):
        with _lock(device):
            if not again:  # another process may have verified them meanwhile
                known |= {v.key: v for v in verdicts.load(device)}
            new: list[Verdict] = []
            # The next backend is verified where the first is wrong.
            while items := missing(operators, names, device, known):
                logger.info("verifying %d kernels on %s, once on this machine", len(items), device)
                found, seconds = verify(items, device, seconds)
                known |= {v.key: v for v in found}
                new += found
            if new and (problem := verdicts.store(new, device)):
                warnings.warn(
                    f"{problem}, so every process repeats it; HYPERSEG_CACHE names another folder.",
                    KernelWarning,
                    stacklevel=4,
                )
    verdicts.apply(known.values(), device)
    return [v for v in known.values() if v.operator in operators and v.dtype in names]


def missing(
    operators: Sequence[str], dtypes: Sequence[str], device: torch.device, known: dict[tuple[str, str, str], Verdict]
) -> list[Item]:
    """Return the kernels that ``auto`` takes by what is known so far, and on which there is no verdict yet."""
    wrong = {v.kernel for v in known.values() if v.outcome != RIGHT}
    items = []
    for operator in operators:
        for backend in dispatch.order(operator, device.type):
            if (operator, backend) in wrong or BACKENDS[backend].lacks(operator):
                continue
            if backend != "reference":
                items += [Item(operator, backend, d) for d in dtypes if (operator, backend, d) not in known]
            break
    return items


@contextlib.contextmanager
def _lock(device: torch.device) -> Iterator[None]:
    """Let processes that start at once, such as the ranks of a training run, verify a device one after the other."""
    try:
        place = verdicts.path(device).with_suffix(".lock")
    except RuntimeError:  # the user has no home folder
        yield
        return
    with file_lock(place, LOCK_PATIENCE):
        yield
