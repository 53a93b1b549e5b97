"""The machine code of a built extension or a cubin, by the kernels' names, and what launches of it execute."""

from __future__ import annotations

import functools
import hashlib
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from hyperseg._files import atomic_write
from tools.machine.counting import SAMPLE, Counts, count, pointers
from tools.machine.elf import constants
from tools.machine.recording import Launch, plain
from tools.machine.sass import disassemble, dump
from tools.machine.state import PARAMETERS

_FUNCTION = re.compile(r"^\s*Function (\S+):\s*\n(.*)$", re.MULTILINE)
ARCHITECTURE = "sm_90"
CACHE = Path(__file__).resolve().parents[2] / "build/machine-code"


@dataclass(frozen=True)
class Resources:
    """What one kernel takes of an SM, and where its machine code is."""

    mangled: str
    cubin: str
    registers: int  # per thread
    shared_bytes: int  # static, with the KB that sm_90 reserves
    parameter_bytes: int


class Library:
    """The sm_90 kernels of an extension.

    Args:
        path: the extension, built with CUDA kernels for sm_90; or a folder of cubins.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._folder = tempfile.TemporaryDirectory()
        self._counts: dict[tuple, Counts] = {}
        self._texts: dict[str, str] = {}
        if self.path.is_dir():
            cubins = sorted(self.path.glob("*.cubin"))
        else:
            # It fails on a file without CUDA kernels: then no cubin is found.
            subprocess.run(
                [*dump(), "-xelf", "all", str(self.path.resolve())], cwd=self._folder.name, capture_output=True
            )
            cubins = sorted(Path(self._folder.name).glob(f"*.{ARCHITECTURE}.cubin"))
        self.kernels: dict[str, Resources] = {}
        for cubin in cubins:
            usage = subprocess.run([*dump(), "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
            for name, rest in _FUNCTION.findall(usage):
                found = dict(re.findall(r"([A-Z]+(?:\[0\])?):(\d+)", rest))
                self.kernels[plain(name)] = Resources(
                    name, str(cubin), int(found["REG"]), int(found["SHARED"]), int(found["CONSTANT[0]"]) - PARAMETERS
                )
        if not self.kernels:
            raise RuntimeError(
                f"{self.path} has no machine code for {ARCHITECTURE}; "
                "build it: TORCH_CUDA_ARCH_LIST=9.0 python setup.py build_ext"
            )

    def resources(self, launch: Launch) -> Resources:
        """Return what the launched kernel takes. Raises RuntimeError if this library does not have it."""
        found = self.kernels.get(launch.kernel)
        if found is None or not 0 <= found.parameter_bytes - len(launch.parameters) < 8:
            raise RuntimeError(
                f"{launch.kernel} was recorded with {len(launch.parameters)} bytes of parameters; in {self.path} "
                f"{'it is missing' if found is None else f'it takes {found.parameter_bytes}'}. "
                "Build the shim and the extension from the same sources"
            )
        return found

    def text(self, launch: Launch) -> str:
        """Return the machine code of the launched kernel."""
        self.preload([launch])
        return self._texts[self.resources(launch).mangled]

    def preload(self, launches: list[Launch]) -> None:
        """Disassemble the kernels of these launches; what was disassembled once is kept in `CACHE`."""
        wanted: dict[str, set[str]] = {}
        for launch in launches:
            found = self.resources(launch)
            if found.mangled not in self._texts:
                wanted.setdefault(found.cubin, set()).add(found.mangled)
        for cubin, names in wanted.items():
            digest = hashlib.sha256(Path(cubin).read_bytes()).hexdigest()
            # File names are at most 255 bytes long; mangled names can be longer.
            paths = {name: CACHE / f"{_digest(digest + name)}.sass" for name in names}
            new = sorted(name for name, path in paths.items() if not path.is_file())
            # The disassembler starts anew for each name, so many take longer than all.
            found_now = disassemble(cubin, *(new if len(new) <= 5 else [])) if new else {}
            for name in new:
                with atomic_write(paths[name]) as temporary:
                    temporary.write_text(found_now[name])
            self._texts |= {name: path.read_text() for name, path in paths.items()}

    def count(self, launch: Launch, most_blocks: int = SAMPLE) -> Counts:
        """Return what a launch executes. Launches that differ only in addresses are counted once."""
        key = (
            launch.kernel,
            launch.grid,
            launch.threads,
            launch.shared_bytes,
            _anonymous(launch.parameters),
            most_blocks,
        )
        if key not in self._counts:
            self._counts[key] = count(
                self.text(launch),
                launch.grid,
                launch.threads,
                launch.shared_bytes,
                launch.parameters,
                most_blocks=most_blocks,
                constants=constants(self.resources(launch).cubin, self.resources(launch).mangled),
            )
        return self._counts[key]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _anonymous(parameters: bytes) -> bytes:
    """Replace addresses by their alignment, which is all that a kernel's flow depends on."""
    result = bytearray(parameters)
    known = pointers(parameters)
    for n in range(0, len(parameters) // 8 * 8, 8):
        word = int.from_bytes(parameters[n : n + 8], "little")
        if word in known:
            result[n : n + 8] = (known[word] << 16 | word % 16).to_bytes(8, "little")
    return bytes(result)


@functools.cache
def library(path: str) -> Library:
    """Return the library of an extension; each is read once."""
    return Library(path)
