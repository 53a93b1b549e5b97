"""Random calls of the operators against the reference in float64.

    python -m tests.stress --minutes 10
    python -m tests.stress --seed 3 --call 1234 --backend cpp

The calls run in a second process. One that kills it or takes too long is reported, and the next process goes on.
"""

import argparse
import collections
import json
import os
import queue
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHIM = ROOT / "build/shim/hyperseg/_C.abi3.so"
# Backend, environment, dtypes, largest number of multiply-adds of a call.
TARGETS = {
    "reference": ("reference", {}, "float16 bfloat16 float32 float64", 2e6),
    "cpp": ("cpp", {}, "float16 bfloat16 float32 float64", 2e6),
    "cuda-shim": ("cuda", {"HYPERSEG_EXTENSION": str(SHIM)}, "float16 bfloat16 float32", 3e5),
    "triton-interpreter": ("triton", {"TRITON_INTERPRET": "1"}, "float16 float32", 1e4),
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.stress", description=__doc__.split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=1.0, help="how long to run (default 1)")
    parser.add_argument("--calls", type=int, help="stop after this many calls")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, help="number of the first call")
    parser.add_argument("--call", type=int, help="run this call alone, in this process")
    parser.add_argument("--backend", choices=TARGETS, default="cpp")
    parser.add_argument("--operator", action="append", help="only this operator; may be repeated")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds after which a call counts as hanging")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def drawn(options: argparse.Namespace, number: int):
    import torch

    from tests.stress.draw import OPERATORS, draw

    backend, _, dtypes, work = TARGETS[options.backend]
    flush = backend in ("cpp", "reference")  # GPUs do not
    operators = tuple(options.operator or OPERATORS)
    return draw(options.seed, number, operators, tuple(getattr(torch, d) for d in dtypes.split()), work, flush)


def checked(options: argparse.Namespace, call) -> dict:
    from tests.stress.judge import judge

    try:
        verdict = judge(call, TARGETS[options.backend][0])
    except Exception:
        return {"errors": {}, "wrong": [traceback.format_exc()[-1500:]], "compared": False}
    return {"errors": verdict.errors, "wrong": verdict.wrong, "compared": verdict.compared}


def worker(options: argparse.Namespace) -> None:
    """Write a line before and after each call."""
    import torch

    torch.set_num_threads(1)
    number = options.start
    while True:
        call = drawn(options, number)
        facts = {"operator": call.operator, "dtype": str(call.dtype)[6:], "illegal": bool(call.illegal)}
        print(json.dumps({"number": number, "call": str(call), **facts}), flush=True)
        print(json.dumps({"number": number, **checked(options, call)}), flush=True)
        number += 1


class Worker:
    """A second process that runs calls, from ``start``."""

    def __init__(self, options: argparse.Namespace, start: int):
        command = [sys.executable, "-m", "tests.stress", "--worker", "--seed", str(options.seed), "--start", str(start)]
        command += ["--backend", options.backend]
        command += [f"--operator={operator}" for operator in options.operator or []]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | TARGETS[options.backend][1]
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.lines: queue.Queue = queue.Queue()
        self.stderr: collections.deque = collections.deque(maxlen=20)
        for source, sink in ((self.process.stdout, self.lines.put), (self.process.stderr, self.stderr.append)):
            threading.Thread(target=self._read, args=(source, sink), daemon=True).start()

    def _read(self, source, sink) -> None:
        for line in source:
            sink(line)
        if source is self.process.stdout:
            self.lines.put(None)

    def next(self, timeout: float) -> dict | None:
        """Return the next message, or None if the process ended.

        Raises:
            queue.Empty: it took too long.
        """
        while True:
            line = self.lines.get(timeout=timeout)
            if line is None:
                return None
            if line.startswith("{"):
                return json.loads(line)

    def end(self) -> int:
        self.process.kill()
        return self.process.wait()


class Report:
    def __init__(self, options: argparse.Namespace):
        self.options, self.began = options, time.monotonic()
        self.calls = self.illegal = self.not_compared = 0
        self.kinds: dict = collections.defaultdict(lambda: [0, 0.0, 0])
        self.failures: list[dict] = []

    def add(self, call: dict, result: dict) -> None:
        self.calls += 1
        self.illegal += call["illegal"]
        self.not_compared += not result["compared"] and not call["illegal"]
        kind = self.kinds[call["operator"], call["dtype"]]
        kind[0] += 1
        kind[1] = max([kind[1], *result["errors"].values()])
        if result["wrong"]:
            kind[2] += 1
            self.failures.append({"number": call["number"], "call": call["call"], "wrong": result["wrong"]})
            print(f"FAILED {self.command(call['number'])}\n  {call['call']}", flush=True)
            for line in result["wrong"]:
                print(f"  {line}", flush=True)

    def command(self, number: int) -> str:
        chosen = "".join(f" --operator {operator}" for operator in self.options.operator or [])
        options = f"--backend {self.options.backend} --seed {self.options.seed}"
        return f"python -m tests.stress {options} --call {number}{chosen}"

    def progress(self) -> None:
        counts = collections.Counter()
        for (operator, _), (calls, _, _) in self.kinds.items():
            counts[operator] += calls
        each = ", ".join(f"{operator} {calls}" for operator, calls in sorted(counts.items()))
        elapsed = (time.monotonic() - self.began) / 60
        print(f"{elapsed:.1f} min: {self.calls} calls, {len(self.failures)} failed ({each})", flush=True)

    def finish(self) -> None:
        self.progress()
        print(f"{self.illegal} of them illegal, {self.not_compared} not supported by the backend")
        print(f"{'operator':36} {'dtype':9} {'calls':>6} {'largest error':>14} {'failed':>7}")
        for (operator, dtype), (calls, error, failed) in sorted(self.kinds.items()):
            print(f"{operator:36} {dtype:9} {calls:6} {error:14.3f} {failed:7}")
        print("The largest error is in units of its bound.")
        for failure in self.failures:
            print(self.command(failure["number"]), "|", failure["wrong"][0].strip().splitlines()[-1][:160])
        if self.options.json:
            kinds = [[*kind, *values] for kind, values in sorted(self.kinds.items())]
            facts = {"seed": self.options.seed, "backend": self.options.backend, "calls": self.calls, "kinds": kinds}
            self.options.json.write_text(json.dumps(facts | {"failures": self.failures}, indent=1))


def repeat(options: argparse.Namespace) -> int:
    report = Report(options)
    end = report.began + 60 * options.minutes
    number, shown = options.start, report.began
    current = Worker(options, number)
    try:
        while time.monotonic() < end and (options.calls is None or report.calls < options.calls):
            call, result = None, None
            try:
                call = current.next(options.timeout)
                result = call and current.next(options.timeout)
                trouble = "the process was killed by it"
            except queue.Empty:
                trouble = f"it took more than {options.timeout:.0f} s"
            if call is None:
                current.end()
                raise SystemExit(f"the worker ended before call {number}:\n{''.join(current.stderr)}")
            if result is None:
                code = current.end()
                time.sleep(0.2)
                details = f"{trouble} (exit code {code})\n{''.join(current.stderr)[-1500:]}"
                result = {"errors": {}, "wrong": [details], "compared": False}
                current = Worker(options, call["number"] + 1)
            report.add(call, result)
            number = call["number"] + 1
            if time.monotonic() - shown > 30:
                shown = time.monotonic()
                report.progress()
    except KeyboardInterrupt:
        pass
    finally:
        current.end()
    report.finish()
    return 1 if report.failures else 0


def one(options: argparse.Namespace) -> int:
    import torch

    torch.set_num_threads(1)
    call = drawn(options, options.call)
    print(call)
    result = checked(options, call)
    for name, error in result["errors"].items():
        print(f"{name}: {error:.3g} times its bound")
    print("\n".join(result["wrong"]) or "right")
    return 1 if result["wrong"] else 0


def main() -> int:
    options = arguments()
    if options.call is not None or options.worker:
        os.environ.update(TARGETS[options.backend][1])
    if options.worker:
        worker(options)
    return one(options) if options.call is not None else repeat(options)


if __name__ == "__main__":
    sys.exit(main())
