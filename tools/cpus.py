"""Run the tests that depend on the CPU's instruction set at each level that this machine has.

    python -m tools.cpus [--level NAME ...] [PYTEST ARGUMENT ...]

A level limits three libraries: the C++ operators (HYPERSEG_CPU_CAPABILITY), ATen (ATEN_CPU_CAPABILITY) and oneDNN
(ONEDNN_MAX_CPU_ISA). Two levels mix them, because a mistake in one library can hide where all choose alike. Levels that
this machine lacks are named and not run. Exit code 1 if a test failed at any level.

At the level `avx2` all other libraries are limited too, where tools/cpuid.py can: they see a CPU with AVX2 only. Caches
and ports are still those of this machine.
"""

import argparse
import os
import subprocess
import sys
import time

import torch

from hyperseg.ops.backends import native
from tools import cpuid

# By level: the C++ operators, ATen, oneDNN, and what the CPU must have. oneDNN's "default" has no limit: it includes
# bfloat16 and AMX instructions where there are any.
LEVELS = {
    "default": ("default", "default", "SSE41", "default"),
    "avx2": ("avx2", "avx2", "AVX2", "avx2"),
    "avx512": ("avx512", "avx512", "AVX512_CORE", "avx512"),
    "avx512_bf16": ("avx512_bf16", "avx512", "AVX512_CORE_BF16", "avx512_bf16"),
    "amx": ("amx", "avx512", "DEFAULT", "amx"),
    "own-avx2": ("avx2", "avx512", "DEFAULT", "avx512"),
    "own-avx512": ("avx512", "avx2", "AVX2", "avx512"),
}
_ORDER = ("default", "avx2", "avx512", "avx512_bf16", "amx")
_VERSIONS = {"x86-64-v3": "avx2", "x86-64-v4": "avx512"}  # as the extension names what it was compiled for

TESTS = (
    "tests/ops/test_gradients.py",
    "tests/ops/test_infinities.py",
    "tests/ops/test_mbconv_bfloat16.py",
    "tests/ops/test_oracle.py",
    "tests/ops/test_parity.py",
    "tests/ops/test_properties.py",
    "tests/ops/test_stress.py",
    "tests/ops/test_threads.py",
    "tests/ops/test_upsample_cross_entropy.py",
    "tests/models",
    "tests/runtime",
    "tests/evaluation",
    "tests/export",
    "tests/predict/test_predictor.py",
    "tests/cli/test_predict_real.py",
    "tests/bench/test_parity.py",
)
# The other backends' kernels are not compiled for the CPU's vectors.
SELECTION = "not triton-cpu and not cuda-cpu"


def available() -> list[str]:
    """Return the levels of this machine, of torch and of the extension."""
    module, _ = native.extension()
    versions = module.cpu_versions.split(", ") if module else list(_VERSIONS)
    own = max(_ORDER.index(_VERSIONS.get(version, "default")) for version in versions)
    best = min(own, _ORDER.index(torch.backends.cpu.get_cpu_capability().lower()))
    if (found := native.cpu_capability()) in native.BFLOAT16_CAPABILITIES:
        best = _ORDER.index(found)
    return [name for name, (*_, needed) in LEVELS.items() if _ORDER.index(needed) <= best]


def environment(level: str) -> dict[str, str]:
    """Return the environment variables of a level."""
    own, aten, onednn, _ = LEVELS[level]
    hidden = cpuid.environment() if level == "avx2" and not cpuid.unavailable() else {}
    return {"HYPERSEG_CPU_CAPABILITY": own, "ATEN_CPU_CAPABILITY": aten, "ONEDNN_MAX_CPU_ISA": onednn} | hidden


def main(argv: list[str] | None = None) -> int:
    """Run the command; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.cpus", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--level", action="append", choices=LEVELS, help="only this level; may be repeated")
    options, pytest_arguments = parser.parse_known_args(argv)
    levels = available()
    if missing := [name for name in options.level or LEVELS if name not in levels]:
        print(f"not on this machine: {', '.join(missing)}", flush=True)
    failed = []
    for level in [name for name in options.level or LEVELS if name in levels]:
        variables = environment(level)
        print(f"\n{level}: {' '.join(f'{k}={v}' for k, v in variables.items())}", flush=True)
        began = time.monotonic()
        command = [sys.executable, "-m", "pytest", *TESTS, "-m", "not slow", "-k", SELECTION, *pytest_arguments]
        code = subprocess.run(command, env={**os.environ, **variables}).returncode
        print(f"{level}: {'passed' if code == 0 else 'FAILED'} in {time.monotonic() - began:.0f} s", flush=True)
        failed += [level] if code else []
    print(f"\nfailed at: {', '.join(failed)}" if failed else "\npassed at every level of this machine")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
