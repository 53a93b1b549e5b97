"""The same network in other hands: eager PyTorch, torch.compile, ONNX Runtime, OpenVINO, and our engine, on the CPU.

    python bench/peers.py --model hyperseg-m
    python bench/peers.py --model hyperseg-s hyperseg-m hyperseg-l-camvid --json peers.json

From a uint8 frame to its labels, float32, the same number of threads for everybody, one run in alternation. Each is
first compared with the plain float32 network; one that does not compute it gets no speed. Others than PyTorch get an
ONNX file of the network in the reference operators' form: pip install 'hyperseg[peers]'.
Exit code: 0 measured, 1 something could not be run (a sentence says what), 2 a peer failed the comparison.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

# Run as a script, the folder bench/ comes first on the path; its parent is what imports need.
_ROOT = str(Path(__file__).resolve().parent.parent)
sys.path[:] = [_ROOT, *(p for p in sys.path if p not in {_ROOT, str(Path(__file__).resolve().parent)})]

from bench.harness import Budget  # noqa: E402
from bench.options import measuring_parser, pick_models, prepare_torch  # noqa: E402
from bench.peer import BUILDERS  # noqa: E402
from bench.peer_run import PeerRun, pick_peers  # noqa: E402
from bench.run import run_script  # noqa: E402

# OpenMP's threads spin for 1 ms after a region, ONNX Runtime's are told to stop (see runtimes.py), TBB's sleep at once.
PAUSE = 0.05


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = measuring_parser("bench/peers.py", __doc__, model="hyperseg-m", row="peer", quick="same network and size")
    add = parser.add_argument
    add("--peers", metavar="A,B", help=f"of {','.join(BUILDERS)}; default: those that are installed")
    add("--no-memory", action="store_true", help="leave out each peer's memory, which takes a process for each")
    return parser.parse_args(argv)


def pick_budget(args: argparse.Namespace) -> Budget:
    rounds = 2 if args.quick else 6
    if args.iterations is not None:
        rounds = min(rounds, args.iterations)
    warm = {"warmup_steps": 1, "warmup_seconds": 0.5} if args.quick else {"warmup_steps": 3, "warmup_seconds": 4.0}
    seconds = args.seconds or (3.0 if args.quick else 18.0)
    return Budget(seconds, rounds, args.iterations, pause=PAUSE, **warm)


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    args.device = "cpu"

    def make() -> PeerRun:
        device = prepare_torch(args)
        return PeerRun(args, device, pick_models(args.model), pick_peers(args.peers), pick_budget(args))

    return run_script("bench/peers.py", args, make)


if __name__ == "__main__":
    sys.exit(main())
