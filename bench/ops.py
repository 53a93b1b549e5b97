"""Every operator at the shapes that the networks give it: each backend beside the reference.

    python bench/ops.py --model hyperseg-m --op decoder_level decoder
    python bench/ops.py --model all --backward --json ops.json
    python bench/preference.py ops.json

Calls are recorded from the engine and from a training step, on a synthetic photograph at the published size. A backend
that does not answer as the reference does gets no speed.
Exit code: 0 measured, 1 something could not be run (a sentence says what), 2 a backend failed the comparison.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

# Run as a script, the folder bench/ comes first on the path; its parent is what imports need.
_ROOT = str(Path(__file__).resolve().parent.parent)
sys.path[:] = [_ROOT, *(p for p in sys.path if p not in {_ROOT, str(Path(__file__).resolve().parent)})]

import torch  # noqa: E402

from bench.harness import Budget  # noqa: E402
from bench.operators import OperatorRun, add_operators, pick_backends, pick_operators  # noqa: E402
from bench.options import add_device, measuring_parser, pick_models, prepare_torch  # noqa: E402
from bench.run import run_script  # noqa: E402

MOST = 40  # steps a slice: a call of microseconds needs no thousands of samples


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = measuring_parser("bench/ops.py", __doc__, model="all", row="row", quick="the same calls")
    add_device(parser)
    add_operators(parser)
    return parser.parse_args(argv)


def pick_budget(args: argparse.Namespace, device: torch.device) -> Budget:
    cuda = device.type == "cuda"
    seconds = args.seconds or (0.2 if args.quick else 0.4 if cuda else 1.0)
    rounds = (5 if args.quick else 20) if cuda else (2 if args.quick else 5)
    if args.iterations is not None:
        rounds = min(rounds, args.iterations)
    warm = {"warmup_steps": 5 if cuda else 1, "warmup_seconds": 0.1 if args.quick else 0.3 if cuda else 0.5}
    return Budget(seconds, rounds, args.iterations, most=MOST, **warm)


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)

    def make() -> OperatorRun:
        device = prepare_torch(args)
        operators = pick_operators(args.op, args.backward)
        backends = pick_backends(args.backend)
        return OperatorRun(args, device, pick_models(args.model), operators, backends, pick_budget(args, device))

    return run_script("bench/ops.py", args, make)


if __name__ == "__main__":
    sys.exit(main())
