"""`python -m tools.cpuid`: processes that see a CPU with AVX2 only, and keep their handlers of faults."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools import cpuid

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = """
import ctypes, faulthandler
faulthandler.enable()
import torch
from hyperseg.ops.backends import native
print(torch.backends.cpu.get_cpu_capability(), native.cpu_capability(), flush=True)
ctypes.string_at(0)
"""


@pytest.mark.skipif(bool(cpuid.unavailable()), reason=cpuid.unavailable() or "available")
def test_libraries_see_avx2_only():
    command = [sys.executable, "-m", "tools.cpuid", sys.executable, "-c", SCRIPT]
    environment = {name: value for name, value in os.environ.items() if "CAPABILITY" not in name}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    aten, own = result.stdout.split(maxsplit=1)
    assert aten in ("AVX2", "DEFAULT")
    assert own.split()[0] not in ("avx512", "avx512_bf16", "amx")
    assert result.returncode == 128 + 11  # SIGSEGV
    assert "Fatal Python error: Segmentation fault" in result.stderr


def test_without_a_command():
    result = subprocess.run([sys.executable, "-m", "tools.cpuid"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2
    assert "which command?" in result.stderr


def test_where_nothing_can_be_hidden(monkeypatch, capsys):
    monkeypatch.setattr(cpuid, "_build", lambda: (None, "there is no C compiler (cc)"))
    assert cpuid.main(["true"]) == 125
    assert "no C compiler" in capsys.readouterr().err
