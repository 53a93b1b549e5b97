"""Description of the machine that a number was measured on: hardware, clocks, temperature, software, source.

Nothing here raises. A value that cannot be read is replaced by a text ("not readable: ..."), never left out.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import hyperseg
from hyperseg._machine import cpu_model

ROOT = Path(__file__).resolve().parents[2]

# Bits of nvmlDeviceGetCurrentClocksEventReasons (NVML calls them "throttle reasons" up to CUDA 12.2).
THROTTLE_REASONS = {
    0x1: "idle",
    0x2: "application clocks",
    0x4: "software power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
    0x100: "display clocks",
}
SLOWING = (
    "software power cap",
    "hardware slowdown",
    "software thermal slowdown",
    "hardware thermal slowdown",
    "hardware power brake",
)
# Environment variables that change what is measured.
VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    "CUDA_LAUNCH_BLOCKING",
    "CUDA_VISIBLE_DEVICES",
    "GOMP_SPINCOUNT",
    "HYPERSEG_BACKEND",
    "HYPERSEG_CPUID",
    "HYPERSEG_CPU_CAPABILITY",
    "HYPERSEG_EXTENSION",
    "HYPERSEG_KEEP_MEMORY",
    "KMP_BLOCKTIME",
    "MKL_ENABLE_INSTRUCTIONS",
    "MKL_NUM_THREADS",
    "NVIDIA_TF32_OVERRIDE",
    "ONEDNN_MAX_CPU_ISA",
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "PYTORCH_CUDA_ALLOC_CONF",
    "TRITON_INTERPRET",
)


def unreadable(why: object) -> str:
    return f"not readable: {why}"


def readable(value: object) -> bool:
    return value is not None and not (isinstance(value, str) and value.startswith("not readable"))


def float_or_text(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return unreadable(text)


def decode_reasons(bits: int) -> list[str]:
    return [name for bit, name in THROTTLE_REASONS.items() if bits & bit]


def run(*command: str, cwd: Path | None = None, timeout: float = 10) -> str | None:
    """Return the output of a command, or None if it is missing or fails."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=timeout, check=True)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout.strip()


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def git() -> dict[str, Any]:
    commit = run("git", "rev-parse", "HEAD", cwd=ROOT)
    if commit is None:
        return {"commit": unreadable("no git checkout or no commit"), "dirty": unreadable("no git checkout")}
    status = run("git", "status", "--porcelain", "--", ":!bench/results", cwd=ROOT)
    return {"commit": commit, "dirty": unreadable("git status failed") if status is None else bool(status)}


def cpu_clock_mhz() -> list[float] | str:
    """Return the lowest and the highest current clock of all cores."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        clocks = [float(line.split(":", 1)[1]) for line in lines if line.startswith("cpu MHz")]
    except (OSError, ValueError) as error:
        return unreadable(error)
    return [min(clocks), max(clocks)] if clocks else unreadable("no such value on this system")


def cpu_state() -> dict[str, Any]:
    try:
        load: Any = list(os.getloadavg())
    except (OSError, AttributeError):
        load = unreadable("no such value on this system")
    return {"load_average": load, "cpu_clock_mhz": cpu_clock_mhz()}


def cpus_allowed() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


class Gpu:
    """Clocks, power, temperature and throttle reasons of one CUDA device: NVML if it is importable, else nvidia-smi."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.uuid = self._uuid()
        self.handle = None
        self.why = "no CUDA device"
        if device.type == "cuda":
            self._open()

    def _uuid(self) -> str | None:
        if self.device.type != "cuda":
            return None
        uuid = str(getattr(torch.cuda.get_device_properties(self.device), "uuid", "") or "")
        return (uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}") if uuid else None

    def _open(self) -> None:
        try:
            import pynvml
        except Exception as error:  # a broken binding must not stop a benchmark
            self.why = f"pynvml: {type(error).__name__}: {error}"
            return
        self.nvml = pynvml
        try:
            pynvml.nvmlInit()
            self.handle = self._handle(pynvml)
        except Exception as error:
            self.why = f"NVML: {error}"

    def _handle(self, nvml: Any) -> Any:
        # torch numbers only the visible devices, NVML all of them: the UUID is the name that both share.
        if self.uuid is not None:
            with suppress(Exception):
                return nvml.nvmlDeviceGetHandleByUUID(self.uuid)
            with suppress(Exception):  # older bindings require bytes
                return nvml.nvmlDeviceGetHandleByUUID(self.uuid.encode())
        if nvml.nvmlDeviceGetCount() != 1:
            raise RuntimeError("cannot tell which of several GPUs is the one in use")
        return nvml.nvmlDeviceGetHandleByIndex(0)

    @property
    def quick(self) -> bool:
        """Whether a reading takes microseconds (NVML) instead of a process (nvidia-smi)."""
        return self.handle is not None

    def state(self) -> dict[str, Any]:
        """Return one reading; a field that cannot be read has a text."""
        if self.device.type != "cuda":
            return {}
        return self._nvml_state() if self.handle is not None else self._smi_state()

    def _nvml_state(self) -> dict[str, Any]:
        nvml, handle = self.nvml, self.handle

        def read(call: Callable[[], Any]) -> Any:
            try:
                return call()
            except Exception as error:
                return unreadable(error)

        def reasons() -> list[str]:
            for name in ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"):
                if hasattr(nvml, name):
                    return decode_reasons(int(getattr(nvml, name)(handle)))
            raise RuntimeError("this NVML has no throttle reasons")

        return {
            "source": "NVML",
            "sm_clock_mhz": read(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
            "memory_clock_mhz": read(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM)),
            "sm_clock_max_mhz": read(lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM)),
            "power_w": read(lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1e3),
            "power_limit_w": read(lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1e3),
            "temperature_c": read(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
            "throttle": read(reasons),
            "processes": read(lambda: len(nvml.nvmlDeviceGetComputeRunningProcesses(handle))),
        }

    def _smi_state(self) -> dict[str, Any]:
        fields = {
            "sm_clock_mhz": "clocks.sm",
            "memory_clock_mhz": "clocks.mem",
            "sm_clock_max_mhz": "clocks.max.sm",
            "power_w": "power.draw",
            "power_limit_w": "power.limit",
            "temperature_c": "temperature.gpu",
        }
        which = [f"--id={self.uuid}"] if self.uuid else []
        values = self._smi(which, list(fields.values()))
        throttle = self._smi(which, ["clocks_event_reasons.active"]) or self._smi(
            which, ["clocks_throttle_reasons.active"]
        )
        if values is None:
            why = f"{self.why}; nvidia-smi is missing or failed"
            return {"source": unreadable(why), **{name: unreadable(why) for name in [*fields, "throttle", "processes"]}}
        state: dict[str, Any] = {"source": "nvidia-smi"}
        state |= {name: float_or_text(value) for name, value in zip(fields, values, strict=True)}
        try:
            state["throttle"] = decode_reasons(int(throttle[0], 16)) if throttle else unreadable("nvidia-smi")
        except ValueError:
            state["throttle"] = unreadable(throttle[0] if throttle else "nvidia-smi")
        apps = run("nvidia-smi", *which, "--query-compute-apps=pid", "--format=csv,noheader")
        state["processes"] = unreadable("nvidia-smi") if apps is None else len(apps.split())
        return state

    @staticmethod
    def _smi(which: list[str], fields: list[str]) -> list[str] | None:
        out = run("nvidia-smi", *which, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits")
        if not out:
            return None
        values = [value.strip() for value in out.splitlines()[0].split(",")]
        return values if len(values) == len(fields) else None


def driver() -> str:
    out = run("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    if out:
        return out.splitlines()[0].strip()
    try:
        import pynvml

        pynvml.nvmlInit()
        value = pynvml.nvmlSystemGetDriverVersion()
        return value.decode() if isinstance(value, bytes) else str(value)
    except Exception as error:
        return unreadable(error)


def describe_device(device: torch.device) -> dict[str, Any]:
    if device.type != "cuda":
        return {"type": device.type, "name": cpu_model() or unreadable("the system does not say")}
    properties = torch.cuda.get_device_properties(device)
    return {
        "type": "cuda",
        "index": device.index,
        "name": properties.name,
        "sm_count": properties.multi_processor_count,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "l2_mib": round(getattr(properties, "L2_cache_size", 0) / 2**20, 1) or unreadable("unknown to torch"),
        "driver": driver(),
        "cuda_devices_visible": torch.cuda.device_count(),
    }


def flags() -> dict[str, Any]:
    """Return torch's switches that change arithmetic or the choice of kernels."""
    return {
        "float32_matmul": torch.backends.cuda.matmul.fp32_precision,
        "float32_cudnn": torch.backends.cudnn.conv.fp32_precision,  # type: ignore[attr-defined]
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
    }


def describe(device: torch.device) -> dict[str, Any]:
    """Return everything that does not change during a benchmark."""
    cudnn = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": describe_device(device),
        "cpu": {
            "model": cpu_model() or unreadable("the system does not say"),
            "logical_cpus": os.cpu_count(),
            "cpus_allowed": cpus_allowed(),
            "threads": torch.get_num_threads(),
            "interop_threads": torch.get_num_interop_threads(),
            "capability": torch.backends.cpu.get_cpu_capability(),
        },
        "software": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda or "none (CPU build of torch)",
            "cudnn": cudnn or "none",
            "triton": version("triton"),
            "timm": version("timm"),
            "numpy": version("numpy"),
            "hyperseg": hyperseg.__version__,
            "os": platform.platform(),
        },
        "git": git(),
        "flags": flags(),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


class Watch:
    """Readings of the machine before, during and after measuring."""

    def __init__(self, device: torch.device) -> None:
        self.gpu = Gpu(device)
        self.readings: list[dict[str, Any]] = []

    def read(self, when: str) -> dict[str, Any]:
        reading = {"when": when, "time": datetime.now(timezone.utc).isoformat(), **cpu_state(), **self.gpu.state()}
        self.readings.append(reading)
        return reading

    def read_if_quick(self, when: str) -> None:
        """Take a reading between two slices, unless that would leave the GPU idle long enough to change its clocks."""
        if self.gpu.quick:
            self.read(when)

    def summary(self, when: str | None = None) -> dict[str, Any]:
        """Return ranges over the readings, and all reasons for which the clocks were limited in any of them."""
        readings = [r for r in self.readings if when is None or r["when"] == when]
        out: dict[str, Any] = {"readings": len(readings)}
        for name in ("sm_clock_mhz", "memory_clock_mhz", "power_w", "temperature_c", "processes"):
            values = [r[name] for r in readings if name in r]
            good = [v for v in values if readable(v)]
            if values:
                out[name] = [min(good), max(good)] if good else values[0]
        throttle = [r["throttle"] for r in readings if "throttle" in r]
        if throttle:
            good = [reason for t in throttle if readable(t) for reason in t]
            out["throttle"] = sorted(set(good)) if any(readable(t) for t in throttle) else throttle[0]
        return out

    def warnings(self) -> list[str]:
        """Return what a reader must know before trusting the numbers."""
        out = []
        seen = self.summary("during") if any(r["when"] == "during" for r in self.readings) else self.summary()
        throttle = seen.get("throttle", [])
        if readable(throttle) and (slow := [reason for reason in throttle if reason in SLOWING]):
            out.append(f"The GPU was slowed down while measuring ({', '.join(slow)}).")
        elif not readable(throttle):
            out.append(f"The GPU's throttle reasons are {throttle}.")
        processes = seen.get("processes", [1, 1])
        if readable(processes) and max(processes) > 1:
            out.append(f"The GPU was shared: up to {max(processes)} processes computed on it.")
        if self.gpu.device.type == "cuda":
            out.append("This script does not lock clocks: it reads them and leaves the GPU's settings as they are.")
        else:
            loads = [r["load_average"][0] for r in self.readings[:1] if readable(r["load_average"])]
            if loads and loads[0] > 0.5 * cpus_allowed():
                out.append(f"The machine was busy before measuring (load average {loads[0]:.1f}): rates are too low.")
        return out
