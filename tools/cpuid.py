"""Run a command that sees a CPU with AVX2 only, on a CPU with AVX-512.

    python -m tools.cpuid [--amd] COMMAND [ARGUMENT ...]

Every library of the command's processes (the operators, ATen, oneDNN, MKL, ONNX Runtime, OpenVINO, compilers with
-march=native) asks the instruction `cpuid` what the CPU has. Here its results are without AVX-512 and AMX, by a
library in C that is preloaded (tools/cpuid_mask.c). With --amd they also have the vendor, the model and the cache sizes
of an AMD EPYC 7003, by which some libraries choose other code. Programs that were started before, files such as
/proc/cpuinfo, and the C library's own choices for memcpy are not changed. The clock, the caches and the ports of the
CPU stay what they are, so times are not those of another CPU.

Needs Linux on x86-64, a C compiler, and a CPU whose `cpuid` can fault: Intel's since Ivy Bridge, AMD's since Zen 4.
Exit code: that of the command; 125 if nothing can be hidden here.
"""

import argparse
import functools
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("cpuid_mask.c")
KINDS = ("avx2", "avx2-amd")


@functools.cache
def _build() -> tuple[Path | None, str]:
    """Return the library to preload, and why there is none."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return None, "only Linux on x86-64 can hide instruction sets"
    folder = SOURCE.parent.parent / "build" / "cpuid"
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / "mask.so"
    if not library.exists() or library.stat().st_mtime < SOURCE.stat().st_mtime:
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            new = Path(temporary) / "mask.so"
            command = ["cc", "-O2", "-Wall", "-Wextra", "-shared", "-fPIC", str(SOURCE), "-o", str(new), "-ldl"]
            try:
                subprocess.run(command, check=True, capture_output=True, text=True)
            except FileNotFoundError:
                return None, "there is no C compiler (cc)"
            except subprocess.CalledProcessError as error:
                return None, f"{SOURCE.name} does not compile: {error.stderr.strip()}"
            os.replace(new, library)
    probe = subprocess.run(["/bin/true"], env={"LD_PRELOAD": str(library)}, capture_output=True, text=True)
    return (None, probe.stderr.strip()) if probe.returncode else (library, "")


def unavailable() -> str:
    """Why instruction sets cannot be hidden on this machine; empty if they can."""
    return _build()[1]


def environment(kind: str = "avx2") -> dict[str, str]:
    """Return the environment variables for processes that shall see AVX2 only.

    Args:
        kind: ``"avx2"``, or ``"avx2-amd"`` for an AMD processor.

    Raises:
        RuntimeError: instruction sets cannot be hidden here.
    """
    library, reason = _build()
    if library is None:
        raise RuntimeError(reason)
    preloaded = [str(library), *filter(None, [os.environ.get("LD_PRELOAD")])]
    return {"LD_PRELOAD": ":".join(preloaded), "HYPERSEG_CPUID": kind}


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.cpuid", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--amd", action="store_true", help="also the vendor, model and caches of an AMD EPYC 7003")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND", help="the command and its arguments")
    options = parser.parse_args(argv)
    if not options.command:
        parser.error("which command?")
    try:
        variables = environment(KINDS[options.amd])
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 125
    code = subprocess.run(options.command, env={**os.environ, **variables}).returncode
    return 128 - code if code < 0 else code  # ended by a signal: as a shell says it


if __name__ == "__main__":
    sys.exit(main())
