"""What is printed and what is written: header, table, footnotes, JSON."""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.environment import readable

SCHEMA_VERSION = 1

SCOPES = {
    "network": "normalised float images on the device -> scores at the network's own output stride, on the device",
    "labels": "normalised float images on the device -> uint8 labels at full size (upsampling and argmax included)",
    "frame": "uint8 RGB frames on the device -> uint8 labels at full size (adds the normalisation)",
    "host": "uint8 RGB frames in host memory -> uint8 labels in host memory (adds both copies and the wait for them)",
}

# Fewer samples than this and the percentile is one of the extremes: the table leaves it out, the JSON has the samples.
ENOUGH = {"p50": 1, "p90": 10, "p99": 100}


def fixed(value: float, digits: int = 4) -> str:
    """A number with about `digits` significant digits, never in exponent form."""
    if value == 0 or not math.isfinite(value):
        return str(value)
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    """Columns padded to their widest cell; the first `left` of them flush left, the others right."""
    widths = [max(len(line[i]) for line in [header, *rows]) for i in range(len(header))]
    lines = []
    for line in [header, ["-" * w for w in widths], *rows]:
        cells = [c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def number(summary: dict[str, float], name: str) -> str:
    return fixed(summary[name]) if summary["n"] >= ENOUGH[name] else "-"


def parity_cell(row: dict[str, Any]) -> str:
    """The worse of the checks before and after timing."""
    checks = [row["parity_before"], row["parity_after"]]
    cells = []
    if checks[0]["agreement"] is not None:
        # Never round a disagreement away.
        shown = math.floor(min(c["agreement"] for c in checks) * 1e3) / 1e3
        cells.append(f"{shown:.3f} %")
    if checks[0]["relative"] is not None:
        cells.append(f"err {max(c['relative'] for c in checks):.0e}")
    return ", ".join(cells)


def rows_table(rows: Sequence[dict[str, Any]], cuda: bool) -> str:
    head = ["mode", "backend", "scope", "p50 ms", "p90", "p99", "n"]
    head += ["device p50"] if cuda else []
    head += ["FPS", "spread", "GFLOP", "MB least", "MB unfused", "roofline", "bound by", "labels agree, error"]
    body = []
    for row in rows:
        latency, through = row["latency_ms"], row["throughput"]
        cells = [row["mode"], row["backend"], row["scope"]]
        cells += [number(latency, p) for p in ("p50", "p90", "p99")] + [str(latency["n"])]
        if cuda:
            cells.append(number(row["device_ms"], "p50") if row["device_ms"] else "-")
        cells += [fixed(through["fps"]), f"{through['spread_percent']:.1f} %"]
        work, roof = row["work"], row["roofline"]
        cells.append("-" if work["flops"] is None else fixed(work["flops"] / 1e9))
        cells.append(fixed(work["compulsory_bytes"] / 1e6))
        cells.append("-" if work["unfused_bytes"] is None else fixed(work["unfused_bytes"] / 1e6))
        cells += ["-", "-"] if roof is None else [f"{fixed(roof['percent'], 3)} %", roof["by"]]
        body.append([*cells, parity_cell(row)])
    return table(head, body, left=3)


def header(environment: dict[str, Any], reading: dict[str, Any]) -> str:
    """The environment in a few lines."""
    device, cpu, software, git = (environment[key] for key in ("device", "cpu", "software", "git"))
    lines = [("device", device["name"])]
    if device["type"] == "cuda":
        about = f"{device['name']}, {device['sm_count']} SM, {device['memory_gib']} GiB, L2 {device['l2_mib']} MiB, "
        lines = [("device", about + f"compute capability {device['compute_capability']}, driver {device['driver']}")]
        lines.append(("state", gpu_state(reading)))
    load = reading["load_average"]
    load = f"load average {load[0]:.2f}" if readable(load) else f"load average {load}"
    threads = f"{cpu['threads']} threads of {cpu['cpus_allowed']} CPUs, {cpu['capability']}, {load}"
    lines.append(("cpu", threads if device["type"] == "cpu" else f"{cpu['model']}, {threads}"))
    versions = [f"{name} {software[name]}" for name in ("torch", "triton", "cuda", "cudnn", "timm", "python")]
    lines.append(("software", ", ".join(versions)))
    lines.append(("system", software["os"]))
    commit = git["commit"] if not readable(git["commit"]) else git["commit"][:12]
    lines.append(("source", f"hyperseg {software['hyperseg']}, commit {commit}" + dirt(git["dirty"])))
    return aligned(lines)


def operators(info: dict[str, Any], device_type: str) -> str:
    """Which backend an engine's operators would take here without one being named, and why not a faster one."""
    found = info.get("operators", {}).get(device_type, {})
    chosen: dict[str, list[str]] = {}
    why: list[str] = []
    for name in ("generate_weights", "decoder_level", "upsample_argmax"):
        if name in found:
            chosen.setdefault(found[name]["backend"], []).append(name)
            why += [f"not {b}: {r}" for b, reasons in found[name]["passed_over"].items() for r in reasons]
    text = "; ".join(f"{backend} for {', '.join(names)}" for backend, names in chosen.items())
    return "; ".join([f"auto takes {text}", *dict.fromkeys(why)])


def dirt(dirty: object) -> str:
    if not readable(dirty):
        return ""
    return " with uncommitted changes" if dirty else ", clean"


def aligned(lines: Sequence[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name.ljust(width)}  {text}" for name, text in lines)


def gpu_state(reading: dict[str, Any]) -> str:
    """Clocks, power, temperature of one reading or of a summary of several."""

    def show(name: str, unit: str) -> str:
        value = reading.get(name)
        if not readable(value):
            return value or "not readable"
        low, high = value if isinstance(value, list) else (value, value)
        return f"{low:g} {unit}" if low == high else f"{low:g} to {high:g} {unit}"

    throttle = reading.get("throttle")
    if not readable(reading.get("sm_clock_mhz")):
        return f"clocks, power and temperature {reading.get('sm_clock_mhz', 'not readable')}"
    why = (", ".join(throttle) or "none") if readable(throttle) else str(throttle)
    return (
        f"SM {show('sm_clock_mhz', 'MHz')}, memory {show('memory_clock_mhz', 'MHz')}, {show('power_w', 'W')}, "
        f"{show('temperature_c', 'C')}, limited by: {why}"
    )


def footnotes(rows: Sequence[dict[str, Any]], cuda: bool, ceilings: dict[str, Any] | None, rotated: int) -> str:
    """What each word of the table means, for exactly the columns printed."""
    scopes = [scope for scope in SCOPES if any(row["scope"] == scope for row in rows)]
    notes = [f"scope {scope}: {SCOPES[scope]}" for scope in scopes]
    sync = "the device synchronised before and after each" if cuda else "one at a time"
    notes.append(
        f"p50, p90, p99: milliseconds of a single step of one batch, {sync}; n samples, a percentile is left out below "
        f"{ENOUGH['p90']} or {ENOUGH['p99']} of them."
    )
    if cuda:
        notes.append("device p50: the same step between two CUDA events, measured in separate runs.")
    notes.append(
        "FPS: images per second with steps issued back to back and one synchronisation per window, median over the "
        "windows; spread is (max - min) / median over them. Scope host waits for its labels at every step."
    )
    notes.append(
        f"Rows are timed in alternation (A B C A B C ...) in one process. Inputs rotate over {rotated} different "
        "frames; caches are not flushed: weights and activations stay as warm as they are in a video."
    )
    if any(row["mode"] == "cudagraph" for row in rows):
        notes.append("Mode cudagraph includes the copy of each input into the memory that the graph reads.")
    notes.append(
        "Norms are folded into the weights, never removed. Labels agree: worst over all inputs and over the checks "
        "before and after timing, against the plain float32 module (reference backend, TF32 off)."
    )
    if ceilings is not None:
        notes.append(
            "GFLOP: two per multiply-add, of the convolutions and products executed. MB least: parameters, input and "
            "output once each. MB unfused: every operator reads its inputs and writes its outputs once."
        )
        notes.append(
            "roofline: the larger of GFLOP / measured matmul rate and MB least / measured copy bandwidth, over the "
            "median time per step in flight." + (" Copies between host and device are not in it." if cuda else "")
        )
    return bullets(notes)


def bullets(notes: Sequence[str]) -> str:
    return "\n".join(textwrap.fill(note, 118, initial_indent="- ", subsequent_indent="  ") for note in notes)


def rounded(value: Any) -> Any:
    """JSON-ready: floats to 10 ns (as milliseconds) in lists of samples, nothing that is not a number."""
    if isinstance(value, dict):
        return {str(k): rounded(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [round(v, 5) if isinstance(v, float) and math.isfinite(v) else rounded(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write atomically: a reader, or a stop in the middle, sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(rounded(document), indent=1, allow_nan=False)
    text = re.sub(r"\[\n[-+.\deE,\s]+\]", lambda numbers: "".join(numbers[0].split()), text)  # samples on one line
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_json(path: Path) -> dict[str, Any]:
    document = json.loads(path.read_text(encoding="utf-8"))
    if document.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(f"{path} has schema version {document.get('schema_version')}, not {SCHEMA_VERSION}.")
    return document
