"""Find the launch options that suit this GPU, and write kernels/tuned/<gpu>.json, which the launchers read.

    python bench/tune.py
    python bench/tune.py --model hyperseg-m --op mbconv decoder_level --dtype float16

Every kernel whose module lists CANDIDATES is tried on the calls that the networks make: each candidate has to answer as
the default does, all of them take turns, and one replaces the default only where it is faster beyond the spread.
Exit code: 0 tuned, 1 it cannot be done here (a sentence says why), 2 a candidate computed something else.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

# Run as a script, the folder bench/ comes first on the path; its parent is what imports need.
_ROOT = str(Path(__file__).resolve().parent.parent)
sys.path[:] = [_ROOT, *(p for p in sys.path if p not in {_ROOT, str(Path(__file__).resolve().parent)})]

import torch  # noqa: E402

from bench import environment, inputs  # noqa: E402
from bench.calls import Call, distinct, inference_calls, training_calls  # noqa: E402
from bench.harness import Budget  # noqa: E402
from bench.options import DTYPES, Parser, pick_models, positive, prepare_torch, probe_writable  # noqa: E402
from bench.report import write_json  # noqa: E402
from bench.run import say  # noqa: E402
from bench.subject import Refused, load, settings  # noqa: E402
from hyperseg.kernels import launch  # noqa: E402
from hyperseg.ops import BACKENDS  # noqa: E402


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(prog="bench/tune.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", nargs="+", default=["all"], metavar="NAME", help="names, aliases, or all")
    add("--op", nargs="+", default=["all"], metavar="NAME", help="operators of the Triton backend, or all")
    add("--dtype", nargs="+", default=["float16", "float32"], choices=DTYPES)
    add("--device", default="auto", help="auto, cuda or cuda:1")
    add("--seconds", type=positive(float), default=0.1, metavar="S", help="measuring time of each candidate and call")
    add("--rounds", type=positive(int), default=15, metavar="N", help="turns that each candidate gets")
    add("--output", type=Path, metavar="FILE", help="default: the table of this GPU in kernels/tuned")
    add("--seed", type=int, default=0)
    return parser.parse_args(argv)


def pick(args: argparse.Namespace) -> tuple[torch.device, list[str]]:
    """The GPU and the operators, or a sentence."""
    if missing := BACKENDS["triton"].unavailable_reasons():
        raise Refused(f"There is nothing to tune here: {'; '.join(missing)}.")
    device = prepare_torch(argparse.Namespace(device=args.device, threads=None))
    if device.type != "cuda":
        raise Refused("There is nothing to tune here: kernels are tuned on a CUDA device, not on a CPU.")
    known = list(BACKENDS["triton"].supported)
    if unknown := [name for name in args.op if name not in {"all", *known}]:
        raise Refused(f"The Triton backend has no operator {unknown[0]!r}; it has {', '.join(known)}. Or all.")
    return device, known if "all" in args.op else args.op


def recorded(name: str, device: torch.device, operators: list[str], seed: int) -> list[Call]:
    """The calls of these operators in inference and in a training step, each shape once."""
    network, _ = load(name, None, seed)
    network = network.to(device)
    frames = inputs.frames(1, 1, *network.config.resolution, seed)[0].to(device)
    calls = [*inference_calls(network, frames), *training_calls(network, frames, backward=True)]
    return [call for call in distinct(calls) if call.operator in operators]


def tune(args: argparse.Namespace) -> int:
    from bench import tuning  # kernels: they need Triton

    device, operators = pick(args)
    path = args.output or launch.table_path(torch.cuda.get_device_name(device))
    probe_writable(path)
    before = json.loads(path.read_text()) if path.is_file() else {}
    budget = Budget(args.seconds, args.rounds, warmup_seconds=0.05)
    tuner = tuning.Tuner(device, budget, tuning.candidates())
    watch = environment.Watch(device)
    machine = {"environment": environment.describe(device), "readings": watch.readings}
    watch.read("before")
    try:
        for name in pick_models(args.model):
            calls = recorded(name, device, operators, args.seed)
            for dtype in args.dtype:
                say(f"{name}, {dtype}: {len(calls)} calls")
                for call in (call.to(DTYPES[dtype]) for call in calls):
                    if run := tuning.served(call):
                        with settings("triton"):
                            tuner.call(run, dtype, call.times)
                        # After every call: a candidate may leave the GPU in no state to go on.
                        write_json(path, tuning.merged(before, tuner) | machine)
            del calls
            torch.cuda.empty_cache()
            watch.read("during")
    except KeyboardInterrupt:
        print(f"\nStopped. What was finished is in {path}.", file=sys.stderr)
        return 130
    write_json(path, tuning.merged(before, tuner) | machine)
    report(tuner, path)
    return 2 if tuner.wrong else 0


def report(tuner, path: Path) -> None:
    chosen = tuner.launches()
    for name, options in chosen.items():
        say(f"{name}: {options}")
    for sentence in tuner.wrong:
        say(f"wrong: {sentence}")
    say(f"{len(tuner.lines)} lines were measured, {len(chosen)} beat their default; {path} has every sample.")


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    try:
        return tune(args)
    except Refused as refusal:
        print(f"bench/tune.py: {refusal}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
