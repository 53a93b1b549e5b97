"""The child process of a verification: it checks kernels, and reports each step as a line of JSON on standard output.

A kernel may crash this process or hang in it, so a line says which case comes next before it runs.
"""

import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch

from hyperseg.ops import BACKENDS
from hyperseg.ops.backends.verdicts import RIGHT, UNKNOWN, WRONG
from hyperseg.verify.cases import cases_of
from hyperseg.verify.check import prepare, run_twice, worst

Report = Callable[..., None]

_OUT_OF_MEMORY = ("out of memory", "allocate memory", "not enough memory")


def main() -> None:
    """Run the request in ``sys.argv[1]``: ``device``, ``items`` (operator, backend, dtype) and ``seconds`` or null."""
    request = json.loads(sys.argv[1])
    report = _reporter()
    warnings.simplefilter("ignore")  # nobody reads them here
    device = torch.device(request["device"])
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.set_num_threads(1)  # on a busy machine, threads that wait for each other would take ten times as long
    torch.set_deterministic_debug_mode("warn")  # fills new memory with NaN, so that an unwritten output is noticed
    torch.ones(2, device=device).sum().item()
    for backend in {backend for _, backend, _ in request["items"]}:
        BACKENDS[backend].unavailable_reasons()  # loads the extension, which takes longer than a case
    report(ready=True)
    end = time.monotonic() + (float("inf") if request["seconds"] is None else request["seconds"])
    for operator, backend, dtype in request["items"]:
        if time.monotonic() > end:
            break
        started = time.perf_counter()
        facts = verdict_on(operator, backend, dtype, device, report)
        report(verdict={**facts, "seconds": round(time.perf_counter() - started, 4)})
        if facts["outcome"] == WRONG and not _usable(device):
            os._exit(0)  # after a fault CUDA fails every later call; the parent starts another process for the rest
    report(end=True)


def verdict_on(operator: str, backend: str, dtype: str, device: torch.device, report: Report) -> dict[str, Any]:
    """Check a kernel in one dtype on its cases up to the first that is wrong; return the fields of a verdict."""
    facts: dict[str, Any] = {"operator": operator, "backend": backend, "dtype": dtype, "outcome": RIGHT}
    if reasons := BACKENDS[backend].lacks(operator):  # this also loads the extension
        return facts | {"outcome": UNKNOWN, "reason": f"the process that verifies it lacks it: {'; '.join(reasons)}"}
    largest, cases = 0.0, cases_of(operator, getattr(torch, dtype))
    for done, case in enumerate(cases):
        report(case=case.name)
        facts |= {"cases": done, "error": largest}
        where = f"case {case.name}"
        try:
            args, compare = prepare(operator, case, getattr(torch, dtype))
        except Exception as error:
            return facts | {"outcome": UNKNOWN, "reason": f"{where}: the reference raised {_first_line(error)}"}
        try:
            outputs, repeated = run_twice(BACKENDS[backend].supported[operator], args, device)
        except Exception as error:
            scarce = any(words in str(error).lower() for words in _OUT_OF_MEMORY) or isinstance(error, MemoryError)
            return facts | {"outcome": UNKNOWN if scarce else WRONG, "reason": f"{where}: {_first_line(error)}"}
        difference = worst([compare(outputs), repeated])
        if difference.problem:
            return facts | {"outcome": WRONG, "reason": f"{where}: {difference.problem}", "error": difference.error}
        largest = max(largest, difference.error)
    return facts | {"cases": len(cases), "error": largest}


def _reporter() -> Report:
    """Keep standard output for the reports: what libraries print goes to standard error."""
    sys.stdout.flush()
    stream = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def report(**facts: Any) -> None:
        stream.write(json.dumps(facts) + "\n")
        stream.flush()

    return report


def _usable(device: torch.device) -> bool:
    try:
        torch.ones(2, device=device).sum().item()
    except RuntimeError:
        return False
    return True


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"
