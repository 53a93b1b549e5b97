"""The CUDA kernels of the built extension, for every architecture that it was built for: their machine code is read.

No kernel uses the stack or spills; none takes more registers than ``cuda_budgets.json`` says; those that are meant for
tensor cores have their instructions.
"""

import functools
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from hyperseg.ops import native

FILE = Path(__file__).with_name("cuda_budgets.json")
SLACK = 8  # registers: ptxas gives them out in eights, and a release moves a kernel by one such step
_NAME = re.compile(r"([a-z][a-z_]*_kernel)(?=[IE])")  # of a kernel, in its mangled name
_MMA = re.compile(r"\sHMMA\b")


def _tool() -> str | None:
    """Of a CUDA toolkit, or what Triton brings along."""
    if found := shutil.which("cuobjdump"):
        return found
    try:
        from triton import __file__ as triton
    except ImportError:
        return None
    found = Path(triton).parent / "backends/nvidia/bin/cuobjdump"
    return str(found) if found.is_file() else None


@functools.cache
def _kernels() -> dict[tuple[str, str], tuple[int, int]]:
    """(registers, bytes of stack) by (architecture, mangled name)."""
    found, arch, name = {}, "", ""
    for line in _dump("--dump-resource-usage").splitlines():
        if match := re.match(r"arch = (\w+)", line):
            arch = match[1]
        elif match := re.match(r"\s*Function (\w+):", line):
            name = match[1]
        elif match := re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", line):
            found[arch, name] = int(match[1]), int(match[2]) + int(match[3])
    return found


def _dump(*options: str) -> str:
    module, sentence = native.extension()
    if module is None:
        pytest.skip(sentence)
    if not module.cuda_version or native.emulated():
        pytest.skip("the extension was built without CUDA kernels")
    tool = _tool()
    if tool is None:
        pytest.skip("there is no cuobjdump: install a CUDA toolkit or Triton")
    return subprocess.run([tool, *options, module.__file__], capture_output=True, text=True, check=True).stdout


def plain(mangled: str) -> str:
    match = _NAME.search(mangled)
    assert match, f"{mangled} is not named like a kernel: end its name in _kernel"
    return match[1]


def test_no_kernel_uses_the_stack():
    bad = [f"{plain(name)} for {arch}: {stack} bytes" for (arch, name), (_, stack) in _kernels().items() if stack]
    assert not bad, "\n".join(bad)


def test_registers_are_within_budget():
    budgets = json.loads(FILE.read_text())
    most: dict[str, int] = {}
    for (_, name), (registers, _) in _kernels().items():
        most[plain(name)] = max(registers, most.get(plain(name), 0))
    excess = [
        f"{name} takes {registers} registers, its budget is {budgets.get(name, {}).get('registers', 'not there')}"
        for name, registers in most.items()
        if name not in budgets or registers > budgets[name]["registers"] + SLACK
    ]
    assert not excess, "\n".join(excess)
    assert set(budgets) == set(most), "a kernel is gone: delete its budget"


def test_tensor_cores_are_used():
    """By every instance of a kernel that is meant for them, on the first architecture: disassembling takes its time."""
    first = next(iter(_kernels()))[0]
    meant = {name for name, budget in json.loads(FILE.read_text()).items() if budget["tensor_cores"]}
    functions = re.split(r"^\s*Function : ", _dump("-sass", "-arch", first), flags=re.MULTILINE)[1:]
    names = [text.split(maxsplit=1)[0] for text in functions]
    assert meant <= set(map(plain, names))
    bodies = zip(names, functions, strict=True)
    without = [name for name, body in bodies if plain(name) in meant and not _MMA.search(body)]
    assert not without, "\n".join(without)
