"""Predict the time of a frame on a GPU, kernel by kernel, from the compiled machine code; needs no GPU.

    python bench/predict_frame.py --model hyperseg-m --gpu h100
    python bench/predict_frame.py --model all --json predicted.json
    python bench/predict_frame.py --model hyperseg-m --timeline timeline.json
    python bench/predict_frame.py --model hyperseg-m --kernel generate_weights
    python bench/predict_frame.py --model all --training --update docs/kernels/predictions.md

A frame is recorded in the shim (``make shim``), which runs no kernel; an emulator executes some blocks of each launch
in the sm_90 code of the built extension and counts; docs/kernels/predictions.md describes how a time is made of that.
``--timeline`` takes a file of bench/timeline.py and prints measured times beside the predicted ones.
Exit code: 0 predicted, 1 not.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.core import launches
from bench.core.errors import Refused
from bench.core.gpu_model import GPUS, Prediction, predict
from bench.core.options import DTYPES, Parser, pick_models, probe_writable, resolution
from bench.core.tables import table
from tools.machine import recording
from tools.machine.library import library
from tools.machine.loops import loops

ROOT = Path(__file__).resolve().parents[1]
SHIM, EXTENSION = ROOT / "build/shim/hyperseg/_C.abi3.so", ROOT / "hyperseg/_C.abi3.so"
BATCH = 16  # images of a training step


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("bench/predict_frame.py", __doc__)
    add = parser.add_argument
    add("--model", nargs="+", default=["hyperseg-m"], metavar="NAME", help="names, aliases, or all")
    add("--gpu", default="h100", choices=GPUS)
    add("--backend", default="cuda", choices=("cuda", "triton"), help="whose kernels; Triton compiles them here")
    add("--dtype", default="float16", choices=DTYPES)
    add("--resolution", "--size", type=resolution, metavar="HxW", help="default: the published one of each network")
    add("--training", action="store_true", help=f"the decoder's forward and backward, {BATCH} images, too")
    add("--kernel", metavar="NAME", help="detail of the kernels whose name contains this: counts by loop")
    add("--kernels", action="store_true", help="a row per kernel, not only per part")
    add("--timeline", type=Path, metavar="FILE", help="a JSON of bench/timeline.py: print it beside the prediction")
    add("--extension", type=Path, default=EXTENSION, metavar="FILE", help="the library with sm_90 code")
    add("--update", type=Path, metavar="FILE", help="rewrite the table of parts in this document")
    add("--json", type=Path, metavar="FILE", help="write the predictions")
    return parser.parse_args(argv)


def summary(predictions: list[Prediction]) -> dict[str, Any]:
    """Return the total and the parts of a step, in microseconds and kernels."""
    parts: dict[str, dict[str, float]] = {}
    for one in predictions:
        part = parts.setdefault(one.kernel.part, {"launches": 0, "us": 0.0, "throughput_us": 0.0})
        part["launches"] += 1
        part["us"] += one.us
        part["throughput_us"] += one.throughput
    return {
        "frame_us": sum(p.us for p in predictions),
        "throughput_us": sum(p.throughput for p in predictions),
        "launches": len(predictions),
        "parts": parts,
    }


def parts_table(found: dict[str, Any]) -> str:
    total = {"launches": found["launches"], "us": found["frame_us"], "throughput_us": found["throughput_us"]}
    rows = [
        [name, str(part["launches"]), f"{part['us']:.1f}", f"{part['throughput_us']:.1f}"]
        for name, part in [*found["parts"].items(), ("total", total)]
    ]
    return table(["part", "launches", "us", "without latency"], rows, left=1)


def kernel_rows(predictions: list[Prediction]) -> list[dict[str, Any]]:
    """Return a row per kernel, for the JSON."""
    rows = []
    for one in predictions:
        row: dict[str, Any] = {"part": one.kernel.part, "name": one.name, "us": one.us, "limit": one.limit}
        row |= {"work_us": one.work, "resident_blocks": one.resident}
        if one.counts is not None:
            row |= {
                "blocks": one.counts.blocks,
                "instructions": one.counts.instructions,
                "divisions": one.counts.divisions,
                "read_bytes": sum(one.counts.read.values()),
                "written_bytes": sum(one.counts.written.values()),
            }
        rows.append(row)
    return rows


def kernels_table(predictions: list[Prediction], measured: dict[int, float] | None) -> str:
    header = ["part", "kernel", "blocks", "M instr.", "bound by", "us"] + (
        [] if measured is None else ["measured", "ratio"]
    )
    rows = []
    for n, one in enumerate(predictions):
        counts = one.counts
        row = [one.kernel.part, one.name, "-" if counts is None else str(counts.blocks)]
        row += ["-" if counts is None else f"{counts.instructions / 1e6:.2f}", one.limit, f"{one.us:.1f}"]
        if measured is not None:
            row += [f"{measured[n]:.1f}", f"{measured[n] / one.us:.2f}"] if n in measured else ["-", "-"]
        rows.append(row)
    return table(header, rows, left=2)


def matched(predictions: list[Prediction], timeline: dict[str, Any]) -> dict[int, float]:
    """Return the measured microseconds of each predicted kernel of ours; PyTorch's may be others than predicted.

    Raises:
        Refused: ours are not the same, in the same order.
    """
    ours = [n for n, one in enumerate(predictions) if one.counts is not None]
    measured: dict[int, float] = {}
    for kernel in timeline["kernels"]:
        if "hyperseg" not in kernel["name"]:
            continue
        if len(measured) == len(ours):
            raise Refused(f"the timeline has more kernels than the {len(ours)} predicted: other sources?")
        expected = predictions[ours[len(measured)]].name
        if expected.split("<")[0] not in kernel["name"]:
            raise Refused(f"the timeline has {kernel['name']} where {expected} is predicted: other sources?")
        measured[ours[len(measured)]] = kernel["cost"]
    if len(measured) < len(ours):
        raise Refused(
            f"the timeline has {len(measured)} kernels of HyperSeg, the prediction {len(ours)}: other sources?"
        )
    return measured


def comparison(predictions: list[Prediction], timeline: dict[str, Any]) -> str:
    """Compare the totals of our kernels and of PyTorch's."""
    ours = sum(one.us for one in predictions if one.counts is not None)
    others = sum(one.us for one in predictions if one.counts is None)
    measured = sum(matched(predictions, timeline).values())
    total = sum(kernel["cost"] for kernel in timeline["kernels"])
    return (
        f"kernels of HyperSeg: predicted {ours:.1f} us, measured {measured:.1f}; of PyTorch: {others:.1f} and "
        f"{total - measured:.1f}; frame: {ours + others:.1f} and {total:.1f}"
    )


def detail(predictions: list[Prediction], word: str) -> str:
    """Describe the kernels whose name contains a word: limits, counts, and instructions by loop."""
    lines = []
    for one in predictions:
        counts = one.counts
        if counts is None or word not in one.name:
            continue
        lines.append(f"{one.kernel.part}: {one.name}: {one.us:.1f} us, bound by {one.limit}")
        lines.append("  us by limit: " + ", ".join(f"{name} {us:.1f}" for name, us in one.work.items()))
        lines.append(
            f"  {counts.blocks} blocks of {counts.warps // counts.blocks} warps, {one.resident} resident per SM; "
            f"{counts.instructions / 1e6:.2f} M instructions, {counts.instructions / counts.warps:.0f} per warp; "
            f"alone a warp takes {counts.cycles_l2:.0f} cycles"
        )
        lines.append(
            f"  {counts.divisions / counts.warps:.1f} integer divisions, {counts.mufu / counts.warps:.0f} special, "
            f"{counts.hmma / counts.warps:.0f} mma, {counts.shared / counts.warps:.0f} shared accesses in "
            f"{counts.shared_wavefronts / counts.warps:.0f} passes, {counts.global_access / counts.warps:.0f} global "
            f"in {counts.global_sectors / counts.warps:.0f} sectors, per warp"
        )
        for loop in loops(counts.code):
            issued = counts.by_instruction[loop.first : loop.last + 1].sum() / counts.warps
            body = loop.last + 1 - loop.first
            lines.append(
                f"  {'  ' * loop.depth}{16 * loop.first:#06x}: {body} instructions, {issued:.0f} executed per warp "
                f"({100 * issued * counts.warps / counts.instructions:.0f} %)"
                + (", with an integer division" if loop.divides else "")
            )
    return "\n".join(lines) or f"no kernel's name contains {word!r}"


def overview(args: argparse.Namespace, results: dict[str, Any]) -> str:
    """Return a table in Markdown: microseconds, and launches in parentheses, of each part by network."""
    lines = [
        f"Predicted, not measured: {GPUS[args.gpu].name}, {args.dtype}: microseconds / without the limit by latency",
        "(launches).",
        "",
        f"| part | {' | '.join(results)} |",
        f"| --- |{' --- |' * len(results)}",
    ]
    lines += _rows("frame, batch 1", list(results.values()))
    for half in ("forward", "backward"):
        steps = [found.get(f"decoder_{half}") for found in results.values()]
        if any(steps):
            lines += _rows(f"decoder, {half}, {BATCH} images", steps)
    return "\n".join(lines)


def _rows(title: str, steps: Sequence[dict[str, Any] | None]) -> list[str]:
    def cell(part: dict[str, float] | None) -> str:
        return "-" if part is None else f"{part['us']:.1f} / {part['throughput_us']:.1f} ({part['launches']})"

    def row(name: str, cells: Sequence[dict[str, float] | None]) -> str:
        return f"| {name} | {' | '.join(map(cell, cells))} |"

    parts = dict.fromkeys(name for step in steps if step for name in step["parts"])
    totals = [step and {**step, "us": step["frame_us"]} for step in steps]
    rows = [row(name, [step and step["parts"].get(name) for step in steps]) for name in parts]
    return [*rows, row(f"**{title}**", totals)]


BLOCK = re.compile(r"(?P<begin><!-- predictions[^>]*-->\n).*?(?P<end><!-- end of predictions -->)", re.DOTALL)


def update(path: Path, text: str) -> None:
    """Replace the table between the comments "predictions" and "end of predictions"."""
    old = path.read_text()
    if not BLOCK.search(old):
        raise Refused(f"{path} has no comments <!-- predictions --> and <!-- end of predictions --> to write between")
    path.write_text(BLOCK.sub(lambda found: f"{found['begin']}{text}\n{found['end']}", old))


def predict_model(args: argparse.Namespace, name: str, code: Any) -> dict[str, Any]:
    gpu, dtype = GPUS[args.gpu], DTYPES[args.dtype]
    predictions = predict(launches.frame(name, args.resolution, dtype, args.backend), code, gpu)
    found = summary(predictions)
    print(f"\n{name}, {args.backend}, {args.dtype}, batch 1, from frame to labels, {gpu.name}, predicted\n")
    print(parts_table(found))
    timeline = json.loads(args.timeline.read_text()) if args.timeline else None
    if args.kernels or timeline:
        print("\n" + kernels_table(predictions, matched(predictions, timeline) if timeline else None))
    if timeline:
        print("\n" + comparison(predictions, timeline))
    if args.kernel:
        print("\n" + detail(predictions, args.kernel))
    found |= {"gpu": args.gpu, "backend": args.backend, "dtype": args.dtype, "kernels": kernel_rows(predictions)}
    if args.training:
        step_of = launches.decoder_step(name, BATCH, dtype, args.backend)
        for half, kernels in zip(("forward", "backward"), step_of, strict=True):
            step = predict(kernels, code, gpu)
            found[f"decoder_{half}"] = summary(step) | {"kernels": kernel_rows(step)}
            print(f"\n{name}, decoder, {half}, batch statistics, {BATCH} images, {args.dtype}, {gpu.name}, predicted\n")
            print(kernels_table(step, None) if args.kernels else parts_table(found[f"decoder_{half}"]))
            if args.kernel:
                print("\n" + detail(step, args.kernel))
    return found


def _code(args: argparse.Namespace) -> Any:
    """Return the library of the backend's machine code. Raises Refused if there is none."""
    if args.backend == "triton":
        from tools.machine import triton_launches

        return triton_launches.library()
    if message := recording.unavailable():
        raise Refused(message)
    if not args.extension.is_file():
        raise Refused(f"there is no {args.extension}; build it: TORCH_CUDA_ARCH_LIST=9.0 python setup.py build_ext")
    return library(str(args.extension))


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    if args.backend == "cuda":
        os.environ.setdefault("HYPERSEG_EXTENSION", str(SHIM))  # read when the first operator loads the extension
    try:
        names = pick_models(args.model)
        if args.json:
            probe_writable(args.json)
        code = _code(args)
        results = {name: predict_model(args, name, code) for name in names}
    except (Refused, RuntimeError, OSError) as error:
        print(f"bench/predict_frame.py: {error}", file=sys.stderr)
        return 1
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")
    if args.update:
        update(args.update, overview(args, results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
