"""The processor and the GPU driver of this machine, as text."""

import platform
import subprocess
from pathlib import Path


def cpu_model() -> str | None:
    """Return the processor's name, or None if the system does not say it."""
    try:
        with open("/proc/cpuinfo") as lines:  # its first lines only: it is long where there are many processors
            for line in lines:
                if line.lower().startswith(("model name", "hardware")):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    if platform.system() == "Darwin":
        try:
            found = subprocess.run(
                ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, timeout=10
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return found.stdout.strip() or None
    return platform.processor() or None


def nvidia_driver() -> str | None:
    """Return the version of NVIDIA's kernel driver, or None, as on a machine without one and in WSL."""
    try:
        first = Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    except (OSError, IndexError):
        return None
    return first.removeprefix("NVRM version:").strip()
