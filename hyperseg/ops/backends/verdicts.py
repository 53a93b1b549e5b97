"""Verdicts of the verification (``hyperseg/verify``): the kernels that ``auto`` passes over on this machine.

A kernel is an operator of a backend. Its verdicts are stored in a file per device in the user's cache folder. Its name
is a hash of all that a verdict depends on (:func:`fingerprint`): the device, its driver, torch and the kernels.
The first operator that ``auto`` runs on a device type reads the file. Only ``hyperseg.verify`` runs a verification.
"""

import functools
import hashlib
import json
import logging
import os
import threading
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import torch

import hyperseg
from hyperseg._files import atomic_write, cache_folder
from hyperseg._machine import cpu_model, nvidia_driver
from hyperseg.ops.backends import native

logger = logging.getLogger("hyperseg.ops")

RIGHT, WRONG, UNKNOWN, FAILED = "right", "wrong", "unknown", "failed"

# Variables that change which kernels run, or what the reference computes.
VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    "HYPERSEG_CPU_CAPABILITY",
    "HYPERSEG_MBCONV",
    "ONEDNN_MAX_CPU_ISA",
    "TRITON_INTERPRET",
)


class KernelWarning(RuntimeWarning):
    """``auto`` passes over a kernel that the verification found wrong here, or did not reach."""


@dataclass(frozen=True)
class Verdict:
    """The result of comparing one kernel in one dtype with the reference.

    Attributes:
        operator, backend, dtype: the kernel; the dtype as in ``"float32"``.
        outcome: ``"right"``; ``"wrong"``: its output is wrong, or it raised an error, crashed or hung; ``"unknown"``:
            it was not checked to the end, for a reason that is not the kernel's; ``"failed"``: it was not verified, or
            right, but raised an error in an engine of this process. Neither of the last two is stored.
        reason: why it is not right; empty if it is.
        cases: number of cases that were right.
        error: largest error of these, see ``hyperseg.verify.comparison.Difference``.
        seconds: time of the comparison, with compilation and reference.
    """

    operator: str
    backend: str
    dtype: str
    outcome: str
    reason: str = ""
    cases: int = 0
    error: float = 0.0
    seconds: float = 0.0

    @property
    def kernel(self) -> tuple[str, str]:
        return self.operator, self.backend

    @property
    def key(self) -> tuple[str, str, str]:
        return self.operator, self.backend, self.dtype


class _PassedOver(dict[str, dict[tuple[str, str], str]]):
    """Why ``auto`` passes over kernels ``(operator, backend)``, by device type; read from the cache on first use.

    Each value is a message of its own.
    """

    def __missing__(self, device_type: str) -> dict[tuple[str, str], str]:
        _remember(device_type, [(device, load(device)) for device in _devices(device_type)])
        return self[device_type]


PASSED_OVER = _PassedOver()
# By device type and identity, the verdicts of this process: those of two GPUs of one kind are the same.
_known: dict[str, dict[str, dict[tuple[str, str, str], Verdict]]] = {}
_warned: set[tuple[str, str, str]] = set()
_changing = threading.Lock()


def enabled() -> bool:
    """Whether kernels are verified, and verdicts heeded: HYPERSEG_VERIFY=0 turns both off."""
    return os.environ.get("HYPERSEG_VERIFY") != "0"


def apply(verdicts: Iterable[Verdict], device: torch.device) -> None:
    """Let ``auto`` pass over kernels that are not right, and take those again that now are. Warn once of each."""
    stored = [] if device.type in PASSED_OVER else [(d, load(d)) for d in _devices(device.type)]
    _remember(device.type, [*stored, (device, list(verdicts))])


def exclude(failed: Verdict, device: torch.device, machine: bool = False) -> None:
    """Let ``auto`` pass over a kernel that failed in an engine, in this process. The caller reports it.

    Args:
        machine: store that it is wrong too, for processes to come, unless HYPERSEG_VERIFY=0.
            :func:`hyperseg.verify.verify_again` replaces that.
    """
    with _changing:
        _warned.add((device.type, *failed.kernel))
    apply([failed], device)
    if machine and enabled():
        store([replace(failed, outcome=WRONG)], device)


def _remember(device_type: str, found: Sequence[tuple[torch.device, list[Verdict]]]) -> None:
    """Add verdicts to what this process knows, later ones replacing earlier ones."""
    warn_of: dict[str, dict[tuple[str, str], str]] = {}
    with _changing:
        devices = _known.setdefault(device_type, {})
        for device, verdicts in found:
            table = devices.setdefault(identity(device), {})
            # What failed in an engine is not right again because small cases of it are.
            table.update({v.key: v for v in verdicts if v.key not in table or table[v.key].outcome != FAILED})
        for device, _ in found:
            reasons = {v.kernel: _reason(v) for v in devices[identity(device)].values() if v.outcome != RIGHT}
            new = {kernel: reason for kernel, reason in reasons.items() if (device_type, *kernel) not in _warned}
            _warned.update((device_type, *kernel) for kernel in new)
            if new:
                warn_of[fingerprint(device)["device"]] = new
        # Replaced at once, because calls on other threads read it.
        known = [v for verdicts in devices.values() for v in verdicts.values()]
        PASSED_OVER[device_type] = {v.kernel: _message(v) for v in known if v.outcome != RIGHT}
    for name, new in warn_of.items():
        _warn(new, name)


def _reason(verdict: Verdict) -> str:
    return f"{verdict.reason} ({verdict.dtype})"


def _message(verdict: Verdict) -> str:
    if verdict.outcome == FAILED:
        return f"it failed in an engine of this process: {_reason(verdict)}"
    return f"its verification on this machine did not succeed: {_reason(verdict)}"


def load(device: torch.device) -> list[Verdict]:
    """Return the stored verdicts of this device; none if there is no file, or no readable one."""
    try:
        stored = json.loads(path(device).read_text())
        return [Verdict(**entry) for entry in stored["verdicts"]]
    except FileNotFoundError:
        return []
    except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
        logger.info("the stored verification of %s is not readable and is ignored: %s", device, error)
        return []


def store(verdicts: Iterable[Verdict], device: torch.device) -> str:
    """Add verdicts to the file of this device; return why they cannot be stored, or ``""``.

    Unknown and failed ones are not stored.
    """
    verdicts = [v for v in verdicts if v.outcome not in (UNKNOWN, FAILED)]
    merged = {v.key: v for v in [*load(device), *verdicts]}
    entries = [asdict(v) for _, v in sorted(merged.items())]
    try:
        with atomic_write(path(device)) as temporary:
            temporary.write_text(json.dumps({"fingerprint": fingerprint(device), "verdicts": entries}, indent=1))
    except (OSError, RuntimeError) as error:
        return f"The verification of the kernels cannot be stored in the cache folder ({error})"
    return ""


def path(device: torch.device) -> Path:
    """Return the file with the verdicts of this device.

    Raises:
        RuntimeError: there is no cache folder.
    """
    return cache_folder() / "kernels" / f"{device.type}-{identity(device)}.json"


def identity(device: torch.device) -> str:
    """Return a hash of the device's :func:`fingerprint`."""
    text = json.dumps(fingerprint(device), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def fingerprint(device: torch.device) -> dict[str, str]:
    """Return all that verdicts depend on: device, driver, instruction sets, versions, kernels and variables."""
    facts = {
        "hyperseg": hyperseg.__version__,
        "torch": torch.__version__,
        "extension": _extension(),
        "verification": _hash_of(Path(hyperseg.__file__).parent / "verify"),
        **{name: os.environ[name] for name in VARIABLES if name in os.environ},
    }
    if device.type == "cpu":
        return facts | {
            "device": cpu_model() or "unknown",
            "capability": native.cpu_capability(),
            "aten": torch.backends.cpu.get_cpu_capability(),
        }
    properties = torch.cuda.get_device_properties(device)
    return facts | {
        "device": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "sms": str(properties.multi_processor_count),
        "driver": nvidia_driver() or "unknown",
        "triton": _version("triton"),
        "kernels": _triton_kernels(),
    }


def _devices(device_type: str) -> list[torch.device]:
    """Return the devices of this type that have stored verdicts, perhaps; none if verdicts are not heeded."""
    if not enabled() or device_type not in ("cpu", "cuda"):
        return []
    try:
        if not any((cache_folder() / "kernels").glob(f"{device_type}-*.json")):
            return []
        if device_type == "cpu":
            return [torch.device("cpu")]
        return [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    except (OSError, RuntimeError) as error:  # an operator must not fail because its cache cannot be read
        logger.info("the stored verification of %s devices is not used: %s", device_type, error)
        return []


def _warn(reasons: dict[tuple[str, str], str], name: str) -> None:
    lines = "".join(f"\n  - {kernel} of {backend}: {reason}" for (kernel, backend), reason in sorted(reasons.items()))
    warnings.warn(
        f"These kernels are not used on {name}, because their verification did not succeed. The next backend runs "
        f"their operators, more slowly:{lines}\n`hyperseg info --verify` verifies them again, without a time limit. "
        "If one is wrong, please report it with that output. HYPERSEG_VERIFY=0 uses all kernels unverified.",
        KernelWarning,
        stacklevel=3,
    )


@functools.cache
def _extension() -> str:
    module, message = native.extension()
    file = getattr(module, "__file__", None)
    return _hash_of(Path(file)) if file else message or "none"


@functools.cache
def _triton_kernels() -> str:
    spec = find_spec("hyperseg.kernels")
    folders = spec.submodule_search_locations if spec else None
    return _hash_of(Path(folders[0])) if folders else "none"


@functools.cache
def _hash_of(place: Path) -> str:
    """Return a hash of a file, or of the sources and tables in a folder."""
    digest = hashlib.sha256()
    files = sorted(f for f in place.rglob("*") if f.suffix in (".py", ".json")) if place.is_dir() else [place]
    for file in files:
        digest.update(file.name.encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:20]


@functools.cache
def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"
