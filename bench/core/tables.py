"""Text output of the commands: the header about the machine, tables, notes."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

from bench.core.machine import readable
from bench.core.results import Row
from bench.core.timing import Summary

# With fewer samples than this, the percentile is one of the extremes: tables leave it out, the JSON has the samples.
ENOUGH = {"p50": 1, "p90": 10, "p99": 100}


def fixed(value: float, digits: int = 4) -> str:
    """Format a number with about `digits` significant digits, never in exponent form."""
    if value == 0 or not math.isfinite(value):
        return str(value)
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    """Pad columns to their widest cell; align the first `left` of them left, the others right."""
    widths = [max(len(line[i]) for line in [header, *rows]) for i in range(len(header))]
    lines = []
    for line in [header, ["-" * w for w in widths], *rows]:
        cells = [c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def percentiles(summary: Summary | None, *names: str) -> list[str]:
    """Return cells with these percentiles, "-" where there are too few samples or none."""
    return ["-" if summary is None or summary.n < ENOUGH[name] else fixed(getattr(summary, name)) for name in names]


def parity_cell(row: Row) -> str:
    """Return the worse of the checks before and after timing."""
    checks = [check for check in (row.parity_before, row.parity_after) if check is not None]
    cells = []
    if agreements := [check.agreement for check in checks if check.agreement is not None]:
        # Never round a disagreement away.
        cells.append(f"{math.floor(min(agreements) * 1e3) / 1e3:.3f} %")
    if errors := [check.relative for check in checks if check.relative is not None]:
        cells.append(f"err {max(errors):.0e}")
    return ", ".join(cells)


def header(environment: dict[str, Any], reading: dict[str, Any]) -> str:
    """Return the environment in a few lines."""
    device, cpu, software, git = (environment[key] for key in ("device", "cpu", "software", "git"))
    lines = [("device", device["name"])]
    if device["type"] == "cuda":
        about = f"{device['name']}, {device['sm_count']} SM, {device['memory_gib']} GiB, L2 {device['l2_mib']} MiB, "
        lines = [("device", about + f"compute capability {device['compute_capability']}, driver {device['driver']}")]
        lines.append(("state", gpu_state(reading)))
    load = reading["load_average"]
    load = f"load average {load[0]:.2f}" if readable(load) else f"load average {load}"
    hidden = ", AVX-512 and AMX hidden" if "HYPERSEG_CPUID" in environment.get("variables", {}) else ""
    threads = f"{cpu['threads']} threads of {cpu['cpus_allowed']} CPUs, {cpu['capability']}{hidden}, {load}"
    lines.append(("cpu", threads if device["type"] == "cpu" else f"{cpu['model']}, {threads}"))
    versions = [f"{name} {software[name]}" for name in ("torch", "triton", "cuda", "cudnn", "timm", "python")]
    lines.append(("software", ", ".join(versions)))
    lines.append(("system", software["os"]))
    commit = git["commit"] if not readable(git["commit"]) else git["commit"][:12]
    lines.append(("source", f"hyperseg {software['hyperseg']}, commit {commit}{_changes(git['dirty'])}"))
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name.ljust(width)}  {text}" for name, text in lines)


def _changes(dirty: object) -> str:
    if not readable(dirty):
        return ""
    return " with uncommitted changes" if dirty else ", clean"


def chosen_backends(info: dict[str, Any], device_type: str) -> str:
    """Return which backend `auto` chooses for an engine's operators on this machine, and why not a faster one."""
    found = info.get("operators", {}).get(device_type, {})
    chosen: dict[str, list[str]] = {}
    why: list[str] = []
    for name in ("generate_weights", "decoder_level", "upsample_argmax"):
        if name in found:
            chosen.setdefault(found[name]["backend"], []).append(name)
            why += [f"not {b}: {r}" for b, reasons in found[name]["passed_over"].items() for r in reasons]
    text = "; ".join(f"{backend} for {', '.join(names)}" for backend, names in chosen.items())
    return "; ".join([f"auto takes {text}", *dict.fromkeys(why)])


def gpu_state(reading: dict[str, Any]) -> str:
    """Return clocks, power and temperature of one reading, or of a summary of several."""

    def show(name: str, unit: str) -> str:
        value = reading.get(name)
        if not readable(value):
            return str(value or "not readable")
        low, high = value if isinstance(value, list) else (value, value)
        return f"{low:g} {unit}" if low == high else f"{low:g} to {high:g} {unit}"

    throttle = reading.get("throttle")
    if not readable(reading.get("sm_clock_mhz")):
        return f"clocks, power and temperature {reading.get('sm_clock_mhz', 'not readable')}"
    why = (", ".join(throttle) or "none") if isinstance(throttle, list) else str(throttle)
    return (
        f"SM {show('sm_clock_mhz', 'MHz')}, memory {show('memory_clock_mhz', 'MHz')}, {show('power_w', 'W')}, "
        f"{show('temperature_c', 'C')}, limited by: {why}"
    )


def bullets(notes: Sequence[str]) -> str:
    return "\n".join(textwrap.fill(note, 118, initial_indent="- ", subsequent_indent="  ") for note in notes)
