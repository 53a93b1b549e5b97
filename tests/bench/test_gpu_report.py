"""bench/gpu_report.py without a GPU: order of stages, result file, time limit, resuming."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import time

import pytest
from _pytest.mark.expression import Expression

from bench import gpu_report
from bench.core import bounded, machine, stages
from bench.core.machine import ROOT
from bench.core.stages import Stage
from tools.gate import extension

GPU = "NVIDIA H200"


def python(code: str) -> str:
    return f"{{python}} -c {shlex.quote(code)}"


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run the command with these stages on a GPU that only has a name; return exit code and state of each stage."""
    monkeypatch.setattr(gpu_report, "device_name", lambda: GPU)
    monkeypatch.setattr(gpu_report.Report, "architecture", lambda self: "9.0")
    monkeypatch.setattr(machine, "describe", lambda device: {"device": GPU})
    monkeypatch.setattr(gpu_report, "fingerprint", lambda: "abc")
    monkeypatch.setattr(gpu_report, "ROOT", tmp_path)
    monkeypatch.delenv("HYPERSEG_EXTENSION", raising=False)

    def go(stages, *arguments):
        monkeypatch.setattr(gpu_report, "STAGES", tuple(stages))
        code = gpu_report.main(["--output", str(tmp_path), *arguments])
        return code, json.loads((tmp_path / "nvidia-h200.json").read_text())["stages"]

    return go


def test_stages_are_done_once_with_the_same_sources(run, monkeypatch, tmp_path):
    counter = tmp_path / "runs"
    stage = Stage("count", "", 60, python(f"open({str(counter)!r}, 'a').write('x'); print('counted')"))
    code, found = run([stage])
    assert code == 0
    assert (found["count"]["state"], found["count"]["exit_code"], found["count"]["sources"]) == ("done", 0, "abc")
    assert found["count"]["last_lines"] == ["counted"]
    assert run([stage])[0] == 0
    assert counter.read_text() == "x"
    run([stage], "--stage", "count")
    assert counter.read_text() == "xx"
    monkeypatch.setattr(gpu_report, "fingerprint", lambda: "def")
    run([stage])
    assert counter.read_text() == "xxx"


def test_a_failed_stage_is_repeated_and_does_not_stop_the_others(run):
    good = Stage("good", "", 60, python("print('fine')"))
    code, found = run([Stage("bad", "", 60, python("raise SystemExit('no luck')")), good])
    assert code == 1
    assert (found["bad"]["state"], found["good"]["state"]) == ("failed", "done")
    assert found["bad"]["last_lines"] == ["no luck"]
    code, found = run([Stage("bad", "", 60, python("pass")), good])
    assert (code, found["bad"]["state"]) == (0, "done")


def test_a_wrong_output_has_its_own_exit_code(run):
    assert run([Stage("bench", "", 60, python("raise SystemExit(2)"))])[0] == 2
    assert run([Stage("pytest", "", 60, python("raise SystemExit(1)"), wrong=1)])[0] == 2
    assert run([Stage("bench", "", 60, python("raise SystemExit(1)"))], "--stage", "bench")[0] == 1


def test_a_stage_ends_when_its_time_is_up(run):
    began = time.monotonic()
    code, found = run([Stage("slow", "", 1, python("import time; time.sleep(60)"))])
    assert time.monotonic() - began < 50
    assert (code, found["slow"]["state"]) == (1, "out of time")


def test_a_wrong_output_counts_also_if_the_time_is_up(run):
    code = "import sys, time\ntry:\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    sys.exit(2)"
    code, found = run([Stage("slow", "", 2, python(code))])
    assert (code, found["slow"]["state"], found["slow"]["exit_code"]) == (2, "out of time", 2)


def test_a_stopped_command_can_save_its_results(tmp_path):
    code = [
        "import sys, time",
        "try:",
        "    print('measuring', flush=True)",
        "    time.sleep(60)",
        "except KeyboardInterrupt:",
        "    open(sys.argv[1], 'w').write('the first part')",
    ]
    file = tmp_path / "found"
    command = [sys.executable, "-c", "\n".join(code), str(file)]
    process = bounded.begin(command, {})
    assert process.stdout is not None
    assert process.stdout.readline() == "measuring\n"
    bounded.stop(process)
    assert process.returncode == 0
    assert file.read_text() == "the first part"


def test_the_file_of_a_stage_is_named(run):
    code = "import sys; open(sys.argv[1], 'w').write('found')"
    _, found = run([Stage("quick", "", 60, python(code) + " {result}", "txt")])
    assert found["quick"]["result"] == "nvidia-h200-quick.txt"


def test_no_stage_is_begun_without_time(run):
    code, found = run([Stage("late", "", 60, python("pass"))], "--minutes", "0.3")
    assert (code, found["late"]["state"]) == (1, "out of time")
    assert "seconds" not in found["late"]


def test_a_missing_tool_is_named(run):
    code, found = run([Stage("tool", "", 60, "no-such-tool", tool="no-such-tool")])
    assert (code, found["tool"]["state"]) == (1, "skipped")
    assert found["tool"]["why"] == "no-such-tool is not installed"


def test_a_tool_without_access_to_the_gpu_is_skipped(run):
    code = "print('==ERROR== Device not supported'); [print('error 999') for _ in range(99)]; raise SystemExit(1)"
    code, found = run([Stage("memcheck", "", 60, python(code), wrong=1)])
    assert (code, found["memcheck"]["state"]) == (1, "skipped")
    assert found["memcheck"]["why"] == "==ERROR== Device not supported"


def test_stages_beside_each_other_run_at_the_same_time(run, tmp_path, capfd):
    """Each waits for the other's file."""

    def wait(mine, other):
        code = f"import pathlib, time; pathlib.Path({str(tmp_path / mine)!r}).touch()\n"
        code += f"while not pathlib.Path({str(tmp_path / other)!r}).exists(): time.sleep(0.01)\nprint('met')"
        return python(code)

    code, found = run(
        [Stage("one", "", 60, wait("a", "b")), Stage("two", "", 60, wait("b", "a"), beside=True)],
        "--archive",
        str(tmp_path / "found.tgz"),
    )
    assert (code, found["one"]["state"], found["two"]["state"]) == (0, "done", "done")
    assert "one: met" in capfd.readouterr().out
    with tarfile.open(tmp_path / "found.tgz") as archive:
        assert {"results/nvidia-h200.json", "logs/one.log", "logs/two.log"} <= set(archive.getnames())


def test_a_bound_holds_for_every_stage(run):
    code, found = run([Stage("slow", "", 60, python("import time; time.sleep(60)"))], "--bound", "0.5")
    assert (code, found["slow"]["state"]) == (1, "out of time")


@pytest.mark.parametrize("loads", [True, False])
def test_a_carried_extension_is_built_only_if_it_does_not_load(run, monkeypatch, loads):
    monkeypatch.setenv("HYPERSEG_EXTENSION", "carried.so")
    monkeypatch.setattr(gpu_report, "LOADS", "pass" if loads else "exit('it is for another Python')")
    _, found = run([Stage("build", "", 60, python("import os; print(os.environ.get('HYPERSEG_EXTENSION'))"))])
    assert found["build"]["state"] == "done"
    assert found["build"].get("last_lines") == (None if loads else ["None"])


def test_the_first_stages_take_five_minutes():
    """Without the build, which a carried extension spares, and with the stage of Triton as an extra."""
    seconds = [max(s.seconds for s in turn) for turn in stages.turns(list(stages.FIRST[1:5]))]
    assert sum(seconds) <= 300
    assert stages.STAGES[: len(stages.FIRST)] == stages.FIRST


@pytest.mark.skipif(extension.missing() is not None, reason=str(extension.missing()))
def test_every_stage_of_parity_selects_tests():
    """On a GPU, by a fake one: a stage that selects no test would pass."""
    command = "-m tests.fakes.cuda -m pytest --collect-only -q -p no:cacheprovider -m gpu tests/ops/test_parity.py"
    output = subprocess.run([sys.executable, *command.split()], capture_output=True, text=True, cwd=ROOT).stdout
    cases = [line.lower() for line in output.splitlines() if "::" in line]
    for stage in stages.STAGES:
        if selected := re.search("-k '([^']+)'", stage.command):
            chosen = Expression.compile(selected[1]).evaluate
            assert any(chosen(lambda word, case=case, **_: word.lower() in case) for case in cases), stage.name


def test_a_fault_ends_its_worker_and_blames_one_test(tmp_path):
    """pytest-xdist replaces a worker whose GPU context is lost (tests/conftest.py).

    Four processes import torch, so it is one of a few lines.
    """
    shutil.copy(ROOT / "tests/conftest.py", tmp_path)
    torch = """
from types import SimpleNamespace

lost = False

def synchronize():
    if lost:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

def get_num_threads():
    return 1

def set_num_threads(threads):
    pass

cuda = SimpleNamespace(is_available=lambda: True, synchronize=synchronize)
"""
    code = """
import pytest, torch

@pytest.mark.gpu
@pytest.mark.parametrize("i", range(6))
def test_kernel(i):
    torch.lost = torch.lost or i == 1
    torch.cuda.synchronize()
"""
    (tmp_path / "torch.py").write_text(torch)
    (tmp_path / "test_kernels.py").write_text(code)
    command = "-m pytest -q -n 1 -p no:cacheprovider --max-worker-restart 3 -W ignore"
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, *command.split(), str(tmp_path)], capture_output=True, text=True, env=environment
    )
    assert "1 failed, 5 passed" in done.stdout, done.stdout
    assert "crashed while running 'test_kernels.py::test_kernel[1]'" in done.stdout


def test_profilers_leave_clocks_and_caches_alone():
    (profile,) = (stage for stage in stages.STAGES if stage.tool == "ncu")
    assert "--clock-control none --cache-control none" in profile.command


def test_results_are_not_sources(monkeypatch, tmp_path):
    (tmp_path / "bench/results").mkdir(parents=True)
    (tmp_path / "kernels").mkdir()
    monkeypatch.setattr(gpu_report, "ROOT", tmp_path)
    (tmp_path / "kernels/x.py").write_text("one")
    before = gpu_report.fingerprint()
    (tmp_path / "bench/results/h200.json").write_text("{}")
    assert gpu_report.fingerprint() == before
    (tmp_path / "kernels/x.py").write_text("two")
    assert gpu_report.fingerprint() != before


def test_a_missing_gpu_is_reported(monkeypatch, capsys):
    monkeypatch.setattr(gpu_report, "device_name", lambda: None)
    assert gpu_report.main([]) == 1
    printed = capsys.readouterr()
    assert "sees no CUDA device here; nothing was run" in printed.err
    assert all(stage.name in printed.out for stage in stages.STAGES)
    assert gpu_report.main(["--dry-run"]) == 0


@pytest.mark.parametrize("stage", gpu_report.STAGES, ids=lambda stage: stage.name)
def test_stages_use_options_that_their_commands_have(stage, monkeypatch, capsys):
    """A misspelt option would cost minutes of a GPU."""
    words = shlex.split(stage.command.format(python=sys.executable, result="found", scratch="none"))
    script = next((w for w in words if w.startswith("bench/")), None)
    if script is None:
        assert "setup.py" in words or "pytest" in words
        return
    from bench import fps, ops, overhead, timeline, train_step, tune

    parse = {
        command.__name__.removeprefix("bench."): command for command in (fps, ops, overhead, timeline, train_step, tune)
    }
    args = parse[script.removeprefix("bench/").removesuffix(".py")].arguments(words[words.index(script) + 1 :])
    if script == "bench/fps.py":
        fps.check_peers(args)


def test_networks_of_others_are_timed_after_the_verdict():
    """First without torch.compile; and whatever they do, they are no wrong output of ours."""
    beside = [stage for stage in stages.STAGES if "--peers" in stage.command and "fps.py" in stage.command]
    assert [stage.name for stage in beside] == ["peers-quick", "peers"]
    quick, full = beside
    assert quick not in stages.FIRST
    assert "compile" not in quick.command
    assert "--mode eager compile cudagraph" in full.command
    assert quick.seconds <= 150
    for stage in beside:
        assert (stage.wrong, stage.beside) == (0, False)


def test_a_stage_of_others_that_fails_hangs_or_is_wrong_leaves_the_verdict(run):
    good = Stage("good", "", 60, python("print('fine')"))
    for seconds, code, state in [
        (60, "raise SystemExit(2)", "failed"),
        (1, "import time; time.sleep(60)", "out of time"),
    ]:
        other = Stage("peers", "", seconds, python(code), wrong=0)
        code, found = run([other, good])
        assert code == 1
        assert (found["peers"]["state"], found["good"]["state"]) == (state, "done")
