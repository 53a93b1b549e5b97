"""The kernels of one frame on a GPU, each with its time: python bench/timeline.py MODEL DTYPE FILE.json [once]

    python bench/timeline.py hyperseg-m float16 timeline.json
    python bench/predict_frame.py --model hyperseg-m --timeline timeline.json     # predicted beside measured
    ncu ... python bench/timeline.py hyperseg-m float16 - once

The engine's frame, from uint8 pixels to labels, is replayed from its CUDA graph under PyTorch's profiler. A kernel has
two figures, both medians in microseconds: ``us`` is its duration, ``cost`` the time from the end of the kernel before
it to its own end. A kernel that starts early, as a programmatic dependent launch, spends part of its duration waiting:
costs add up to the frame's time, durations do not. FILE has all kernels in order, and the graph's time without the
profiler: of single replays, and per replay of 50 in a row. ``once`` runs two frames eagerly instead and writes nothing,
for a profiler of its own.
Exit code: 0 measured, 1 it could not be run (a message gives the reason).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.core import machine
from bench.core.errors import Refused
from bench.core.options import DTYPES, Parser, pick_models, probe_writable, resolution
from bench.core.results import SCHEMA_VERSION, Json, write_json
from bench.core.run import log

WARM_UP = 50
REPLAYS = 20
# Of a kernel's event in the profiler's trace, what is kept.
DETAILS = ("grid", "block", "registers per thread", "shared memory")
KINDS = ("kernel", "gpu_memcpy", "gpu_memset")


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser("bench/timeline.py", __doc__)
    add = parser.add_argument
    add("model", metavar="MODEL", help="name or alias of a network")
    add("dtype", metavar="DTYPE", choices=DTYPES, help="float16, bfloat16 or float32")
    add("file", metavar="FILE", type=Path, help="JSON file to write; not written with `once`")
    add("once", nargs="?", choices=["once"], help="two frames without a graph, for a profiler")
    add("--resolution", "--size", type=resolution, metavar="HxW", help="default: the published one")
    return parser.parse_args(argv)


def kernels(events: list[Json], replays: int) -> list[Json]:
    """Return a row for each kernel, copy and fill of one replay, in order of its start.

    Args:
        events: the trace's, in any order.
        replays: how often the graph was replayed in it.

    Raises:
        Refused: the replays differ.
    """
    seen = sorted((e for e in events if e.get("cat") in KINDS), key=lambda e: e["ts"])
    count, rest = divmod(len(seen), replays)
    if not count or rest:
        raise Refused(f"The trace has {len(seen)} kernels in {replays} replays, so they are not equal; run it again.")
    found = []
    for i in range(count):
        same = seen[i::count]
        if len({e["name"] for e in same}) > 1:
            raise Refused(f"Kernel {i} is not the same in all replays: {sorted({e['name'] for e in same})[:3]}.")
        ends = [e["ts"] + e["dur"] for e in same]
        # The kernel before the first one belongs to another replay, launched by the host.
        before = [e["ts"] + e["dur"] for e in seen[i - 1 :: count]] if i else [e["ts"] for e in same]
        about = {key: same[0].get("args", {}).get(key) for key in DETAILS}
        cost = statistics.median(end - last for end, last in zip(ends, before, strict=True))
        found.append({"name": same[0]["name"], "us": statistics.median(e["dur"] for e in same), "cost": cost} | about)
    return found


def traced(graph: torch.cuda.CUDAGraph) -> list[Json]:
    """Replay the graph under the profiler and return the events of its trace."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for _ in range(REPLAYS):
            graph.replay()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(trace))
        return json.loads(trace.read_text())["traceEvents"]


def microseconds(graph: torch.cuda.CUDAGraph, replays: int) -> float:
    """Return the time per replay, of ``replays`` replays in a row."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(replays):
        graph.replay()
    end.record()
    torch.cuda.synchronize()
    return 1e3 * begin.elapsed_time(end) / replays


def run(args: argparse.Namespace) -> None:
    import hyperseg

    if not torch.cuda.is_available():
        raise Refused("PyTorch sees no CUDA device here, and a timeline needs one.")
    (name,) = pick_models([args.model])
    if not args.once:
        probe_writable(args.file)
    model = hyperseg.synthesize_weights(hyperseg.create_model(name).eval(), 0)
    size = args.resolution or tuple(model.config.resolution)
    mode = "eager" if args.once else "cudagraph"
    engine = hyperseg.build_engine(model, size=size, dtype=DTYPES[args.dtype], device="cuda", mode=mode, check=False)
    frame = torch.randint(0, 256, (1, *size, 3), dtype=torch.uint8, device="cuda")
    for _ in range(2 if args.once else WARM_UP):
        engine(frame)
    torch.cuda.synchronize()
    graph = engine.cuda_graph()
    if graph is not None:
        write(args, name, size, graph)


@torch.inference_mode()
def write(args: argparse.Namespace, name: str, size: tuple[int, ...], graph: torch.cuda.CUDAGraph) -> None:
    document: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "kind": "hyperseg-timeline",
        "model": name,
        "size": list(size),
        "dtype": args.dtype,
        "gpu": torch.cuda.get_device_name(),
        "us_alone": statistics.median(microseconds(graph, 1) for _ in range(200)),
        "us_in_a_row": statistics.median(microseconds(graph, 50) for _ in range(20)),
        "kernels": kernels(traced(graph), REPLAYS),
        "environment": machine.describe(torch.device("cuda")),
    }
    write_json(args.file, document)
    show(document)


def show(document: Json) -> None:
    for k in document["kernels"]:
        log(f"{k['cost']:8.2f} {k['us']:8.2f}  {k['grid']} {k['block']} {k['name'][:110]}")
    costs = sum(k["cost"] for k in document["kernels"])
    log(
        f"{document['model']} {document['dtype']}: {len(document['kernels'])} kernels, costs {costs:.1f} us, alone "
        f"{document['us_alone']:.1f}, in a row {document['us_in_a_row']:.1f}"
    )


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    try:
        run(args)
    except (Refused, ValueError, RuntimeError) as error:
        print(f"bench/timeline.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
