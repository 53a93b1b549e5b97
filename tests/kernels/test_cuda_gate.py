"""Read the machine code of the built extension's CUDA kernels, for every architecture that it was built for.

No kernel uses the stack or spills, none exceeds its registers in ``cuda_budgets.json``, kernels meant for tensor cores
have MMA instructions, and loops do not divide integers. For sm_90, executed instructions and launches per frame are
within ``executed.json``.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hyperseg.ops.backends import native
from tools.gate import divisions, executed, extension, loops

SLACK = 8  # registers: ptxas allocates them in steps of 8, and a release moves a kernel by one step
RECORD = "If that is meant: build for 8.0, 9.0 and 10.0, then `python -m tools.gate.extension --write`."
BUDGETS = json.loads(extension.BUDGETS.read_text())

built = pytest.mark.skipif(extension.missing() is not None, reason=extension.missing() or "")


@built
def test_no_kernel_uses_the_stack():
    kernels = extension.kernels().items()
    bad = [f"{extension.plain(name)} for {arch}: {stack} bytes" for (arch, name), (_, stack) in kernels if stack]
    assert not bad, "\n".join(bad)


@built
def test_registers_are_within_budget():
    most = extension.most_registers()
    wrong = [
        f"{name} takes {registers} registers, its budget is {BUDGETS[name]['registers']} and {SLACK} more"
        for name, registers in most.items()
        if name in BUDGETS and registers > BUDGETS[name]["registers"] + SLACK
    ]
    wrong += [f"{name} has no budget" for name in sorted(set(most) - set(BUDGETS))]
    wrong += [f"{name} has a budget but is gone" for name in sorted(set(BUDGETS) - set(most))]
    assert not wrong, "\n".join([*wrong, RECORD])


@built
def test_tensor_cores_are_used():
    """For float16 and bfloat16, and only the first architecture, as disassembling is slow."""
    meant = {name for name, budget in BUDGETS.items() if budget["tensor_cores"]}
    functions = extension.functions(extension.first_architecture())
    instances = {name: code for name, code in functions.items() if extension.is_16_bit(name)}
    instances = {name: code for name, code in instances.items() if extension.plain(name) in meant}
    assert set(map(extension.plain, instances)) == meant
    without = [f"{extension.plain(name)} ({name})" for name, code in instances.items() if "HMMA" not in code]
    assert not without, "\n".join(["meant for tensor cores, but have none of their instructions:", *without])


@built
def test_loops_do_not_divide_integers():
    assert divisions.problems(divisions.dividing(extension.functions(extension.first_architecture()))) == []


def test_a_division_in_a_loop_is_found():
    division = ["I2F.U32.RP R4, R3", "MUFU.RCP R4, R4", "F2I.FTZ.U32.TRUNC.NTZ R5, R4"]
    lines = [*division, "IADD3 R0, R0, 0x1, RZ", "@P0 BRA 0x00", "EXIT"]
    text = "\n".join(f"/*{16 * n:04x}*/ {line} ;" for n, line in enumerate(lines))
    assert divisions.dividing({"_ZN8hyperseg4cuda10new_kernelEv": text}) == {"new_kernel"}
    assert divisions.problems({"new_kernel"} | set(divisions.ALLOWED)) == [
        "new_kernel divides integers in a loop: see tools/gate/divisions.py"
    ]
    assert divisions.dividing({"_ZN8hyperseg4cuda10new_kernelEv": text.replace("0x00", "0x30")}) == set()


def run_executed(*options: str) -> str:
    command = [sys.executable, "-m", "tools.gate.executed", *options]
    environment = os.environ | {"HYPERSEG_EXTENSION": str(executed.SHIM)}
    root = Path(__file__).resolve().parents[2]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True).stdout


@pytest.mark.skipif(native.emulated(), reason="another process counts what the shim records")
@pytest.mark.skipif(executed.missing() is not None, reason=executed.missing() or "")
@pytest.mark.parametrize("options", [["--quick"], pytest.param([], marks=pytest.mark.slow)], ids=["frame", "all"])
def test_instructions_and_launches_are_within_budget(options: list[str]):
    printed = run_executed(*options)
    assert printed == "Executed instructions and launches are within their budgets.\n", printed


def test_what_exceeds_its_budget_is_reported():
    budgets = {"launches": {"net": 90.0}, "frame": {"a_kernel": 100.0}}
    assert executed.problems({"launches": {"net": 90.0}, "frame": {"a_kernel": 104.0}}, budgets) == []
    launches, instructions, missing = executed.problems(
        {"launches": {"net": 91.0}, "frame": {"a_kernel": 106.0, "b_kernel": 1.0}}, budgets
    )
    assert "net takes 91 launches" in launches
    assert "a_kernel takes 106 instructions per byte (frame), its budget is 100 and 5%" in instructions
    assert "b_kernel has no budget" in missing


def test_loops_are_found():
    code = "/*0000*/ MOV R1, c[0x0][0x28] ;\n/*0010*/ HMMA R4, R2 ;\n/*0020*/ @P0 BRA 0x10 ;\n/*0030*/ EXIT ;"
    length, (loop,) = loops.loops(code)
    assert (length, loop.first, loop.last, loop.depth) == (4, 0x10, 0x20, 0)
    assert loop.operations == {"HMMA": 1, "BRA": 1}


def test_kernels_are_named_whatever_the_hash_of_their_file():
    unnamed = "_GLOBAL__N__57f_19_generate_weights_cu_42a15df7"
    mangled = f"_ZN8hyperseg4cuda{len(unnamed)}{unnamed}23generate_weights_kernelI6__halfEEvT_"
    assert extension.plain(mangled) == "generate_weights_kernel"
