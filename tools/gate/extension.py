"""Resources of the CUDA kernels in the built extension, read by cuobjdump.

    TORCH_CUDA_ARCH_LIST="8.0;9.0;10.0" python setup.py build_ext
    python -m tools.gate.extension --write

records the most registers that any instance of a kernel takes on any of these architectures, and whether it has
tensor-core instructions, in ``cuda_budgets.json``. A commit that raises a budget says why.
"""

import argparse
import functools
import json
import re
import subprocess
from pathlib import Path

from hyperseg.ops.backends import native
from tools.machine.sass import tool

BUDGETS = Path(__file__).with_name("cuda_budgets.json")
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")  # budgets are the maximum over these
_LENGTH = re.compile(r"L?(\d+)")  # of the name that follows it in a mangled name


def missing() -> str | None:
    """Return why there are no CUDA kernels to read, or None."""
    module, message = native.extension()
    if module is None:
        return message
    if not module.cuda_version or native.emulated():
        return "the extension was built without CUDA kernels"
    return None if tool() else "there is no cuobjdump: install a CUDA toolkit or Triton"


def dump(*options: str) -> str:
    """Return the output of cuobjdump for the built extension. Raises RuntimeError if there is nothing to read."""
    module, program = native.extension()[0], tool()
    if message := missing():
        raise RuntimeError(message)
    assert module is not None
    assert program is not None
    command = [program, *options, str(module.__file__)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@functools.cache
def kernels() -> dict[tuple[str, str], tuple[int, int]]:
    """Return (registers, bytes of stack) by (architecture, mangled name)."""
    found, arch, name = {}, "", ""
    for line in dump("--dump-resource-usage").splitlines():
        if match := re.match(r"arch = (\w+)", line):
            arch = match[1]
        elif match := re.match(r"\s*Function (\w+):", line):
            name = match[1]
        elif match := re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", line):
            found[arch, name] = int(match[1]), int(match[2]) + int(match[3])
    return found


def first_architecture() -> str:
    return next(iter(kernels()))[0]


@functools.cache
def functions(arch: str) -> dict[str, str]:
    """Return the machine code of every kernel for this architecture, by mangled name."""
    texts = re.split(r"^\s*Function : ", dump("-sass", "-arch", arch), flags=re.MULTILINE)[1:]
    return {text.split(maxsplit=1)[0]: text for text in texts}


def plain(mangled: str) -> str:
    """Return a kernel's name in the sources: the last of the names after ``_ZN`` in its mangled name."""
    name, rest = "", mangled.removeprefix("_ZN")
    while match := _LENGTH.match(rest):
        end = match.end() + int(match[1])
        name, rest = rest[match.end() : end], rest[end:]
    assert name.endswith("_kernel"), f"{mangled} is not named like a kernel: end its name in _kernel"
    return name


def is_16_bit(mangled: str) -> bool:
    """Return whether an instance of a kernel is for float16 or bfloat16."""
    return "__half" in mangled or "__nv_bfloat16" in mangled


def most_registers() -> dict[str, int]:
    """Return the most registers by kernel, over all its instances and architectures."""
    most: dict[str, int] = {}
    for (_, mangled), (registers, _) in kernels().items():
        most[plain(mangled)] = max(registers, most.get(plain(mangled), 0))
    return most


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.gate.extension", description=__doc__)
    parser.add_argument("--write", action="store_true", required=True, help=f"rewrite {BUDGETS.name}")
    parser.parse_args()
    if message := missing():
        parser.error(message)
    built = {arch for arch, _ in kernels()}
    if not set(ARCHITECTURES) <= built:
        parser.error(f"budgets are for {', '.join(ARCHITECTURES)}; the extension was built for {', '.join(built)}")
    code = functions(first_architecture())
    with_mma = {plain(name) for name, text in code.items() if is_16_bit(name) and "HMMA" in text}
    budgets = {
        name: {"registers": registers, "tensor_cores": name in with_mma}
        for name, registers in sorted(most_registers().items())
    }
    BUDGETS.write_text(json.dumps(budgets, indent=2) + "\n")


if __name__ == "__main__":
    main()
