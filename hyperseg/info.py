"""``python -m hyperseg.info``: what is built here, which backend each operator takes, and why not the others."""

import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterable, Sequence
from importlib import metadata
from types import ModuleType
from typing import Any

import torch

import hyperseg
from hyperseg import ops
from hyperseg._machine import cpu_model, nvidia_driver
from hyperseg.ops.backends import native, verdicts
from hyperseg.ops.backends.verdicts import RIGHT, WRONG, Verdict
from hyperseg.verify import Unavailable, verify_again


def report() -> dict[str, Any]:
    """Return everything that :func:`main` prints without ``--verify``, as JSON-ready values."""
    module, message = native.extension()
    has_cuda = torch.cuda.is_available()
    return {
        "versions": {
            "hyperseg": hyperseg.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": _version("triton"),
            "timm": _version("timm"),
        },
        "devices": {
            "cpu": f"{cpu_model() or platform.machine()}, {torch.get_num_threads()} threads",
            "cuda": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
            if has_cuda
            else "none that PyTorch can use",
            "driver": nvidia_driver() or "none",
        },
        "instruction_sets": {
            "C++ operators": native.cpu_capability(),
            "ATen": torch.backends.cpu.get_cpu_capability(),
            "oneDNN": _onednn_instruction_set(),
        },
        "extension": message if module is None else _build(module),
        "backends": {
            b.name: {"description": b.description, "missing": b.unavailable_reasons()} for b in ops.BACKENDS.values()
        },
        "named_backend": ops.named_backend(),
        "operators": {
            device: {
                name: dict(zip(("backend", "passed_over"), ops.chosen(name, device), strict=True))
                for name in ops.OPERATORS
            }
            for device in ["cpu", *(["cuda"] if has_cuda else [])]
        },
        "verification": {str(device): _summary(verdicts.load(device)) for device in devices()},
    }


def devices() -> list[torch.device]:
    """Return the CPU, and one GPU of each kind."""
    found = {}
    for i in reversed(range(torch.cuda.device_count() if torch.cuda.is_available() else 0)):
        device = torch.device("cuda", i)
        found[verdicts.identity(device)] = device
    return [torch.device("cpu"), *reversed(found.values())]


def _summary(found: Sequence[Verdict]) -> str:
    if not verdicts.enabled():
        return "off: HYPERSEG_VERIFY is 0"
    if not found:
        return "none yet: the first engine on this device runs it"
    wrong = len({v.kernel for v in found if v.outcome == WRONG})
    return f"{len({v.kernel for v in found})} kernels compared with the reference, {wrong or 'none'} wrong"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _build(module: ModuleType) -> dict[str, str]:
    """Return how the extension was built: its attributes that are strings."""
    found = {name: getattr(module, name) for name in sorted(dir(module)) if not name.startswith("_")}
    return {name: value for name, value in found.items() if isinstance(value, str)}


def _onednn_instruction_set() -> str:
    """Return the instruction set that oneDNN reports on standard output when it runs verbosely."""
    mkldnn = torch.backends.mkldnn
    if not mkldnn.is_available():
        return "none: PyTorch was built without it"
    try:
        with tempfile.TemporaryFile() as file:
            sys.stdout.flush()
            saved = os.dup(1)
            os.dup2(file.fileno(), 1)
            try:
                with mkldnn.verbose(mkldnn.VERBOSE_ON):
                    torch.nn.functional.conv2d(torch.zeros(2, 16, 32, 32), torch.zeros(16, 16, 3, 3))
            finally:
                os.dup2(saved, 1)
                os.close(saved)
            file.seek(0)
            lines = file.read().decode(errors="replace").splitlines()
    except OSError as error:
        return f"not readable: {error}"
    return next((line.partition("isa:")[2] for line in lines if "cpu,isa:" in line), "not reported")


def verification() -> dict[str, list[Verdict] | str]:
    """Verify every kernel again on the CPU and on a GPU of each kind; return the verdicts, or why there are none."""
    return {str(device): _verdicts(device) for device in devices()}


def _verdicts(device: torch.device) -> list[Verdict] | str:
    try:
        return verify_again(device)
    except Unavailable as error:
        return str(error)


def main(verify: bool = False, as_json: bool = False) -> int:
    """Print the report; return the exit code. Operators name only reasons that are not about the backend as a whole.

    Args:
        verify: verify every kernel first, and print a table; the exit code is 1 if not all of them are right.
        as_json: print JSON.
    """
    try:
        tables = verification() if verify else {}  # first, because it changes what is chosen
        facts = report()
    except ops.BackendError as error:
        sys.exit(f"HYPERSEG_BACKEND: {error}")
    if as_json:
        entries = {device: t if isinstance(t, str) else [vars(v) for v in t] for device, t in tables.items()}
        print(json.dumps(facts | ({"verdicts": entries} if verify else {}), indent=1))
    else:
        _print(facts)
        for device, table in tables.items():
            _print_table(device, table)
    return int(any(isinstance(t, str) or any(v.outcome != RIGHT for v in t) for t in tables.values()))


def _print(facts: dict[str, Any]) -> None:
    print("HyperSeg " + ", ".join(f"{k} {v}" for k, v in facts["versions"].items()).removeprefix("hyperseg "))
    for device, description in facts["devices"].items():
        print(f"  {device:10} {description if isinstance(description, str) else ', '.join(description)}")
    print("\nInstruction sets on the CPU")
    for library, name in facts["instruction_sets"].items():
        print(f"  {library:22} {name}")
    if requested := os.environ.get("HYPERSEG_CPU_CAPABILITY"):
        print(
            f"  HYPERSEG_CPU_CAPABILITY is {requested}; without it the best of cpu_versions that this CPU has is used."
        )
    print("\nExtension hyperseg._C")
    if isinstance(facts["extension"], str):
        print(f"  {facts['extension']}")
    else:
        print(f"  {'file':22} {getattr(native.extension()[0], '__file__', '-')}")
        for key, value in facts["extension"].items():
            print(f"  {key:22} {value or '-'}")
    print("\nBackends")
    for name, backend in facts["backends"].items():
        print(f"  {name:10} {backend['description']}: {'; '.join(backend['missing']) or 'available'}")
    if facts["named_backend"]:
        print(f"  HYPERSEG_BACKEND is {facts['named_backend']}: operators that it does not support raise an error.")
    for device, operators in facts["operators"].items():
        print(f"\nOperators on {device}" + (", if no backend were named" if facts["named_backend"] else ""))
        for name, choice in operators.items():
            reasons = {b: r for b, r in choice["passed_over"].items() if r != facts["backends"][b]["missing"]}
            why = "; ".join(f"not {b}: {', '.join(r)}" for b, r in reasons.items())
            print(f"  {name:44} {choice['backend']:10} {why}".rstrip())
    print("\nVerification of the kernels")
    for device, summary in facts["verification"].items():
        print(f"  {device:10} {summary}")


def _print_table(device: str, found: Iterable[Verdict] | str) -> None:
    print(f"\nKernels on {device}, compared with the reference in float64")
    if isinstance(found, str):
        print(f"  They cannot be verified: {found}.")
        return
    print(f"  {'operator':44} {'backend':9} {'dtype':9} {'cases':>5} {'largest error':>13} {'ms':>7}  verdict")
    for v in found:
        verdict = v.outcome + (f": {v.reason}" if v.reason else "")
        numbers = f"{v.cases:5} {v.error:13.1e} {1e3 * v.seconds:7.0f}"
        print(f"  {v.operator:44} {v.backend:9} {v.dtype:9} {numbers}  {verdict}")
    print(
        "  The largest error of an output is relative to the root mean square of the expected values; of labels it is\n"
        "  the share that differs. It says little of gradients in float16 and bfloat16, which jump where rounding\n"
        "  moves a value across a corner of ReLU6."
    )


def _command() -> int:
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of a pipe has closed it, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        return 1
    return code


if __name__ == "__main__":
    sys.exit(_command())
