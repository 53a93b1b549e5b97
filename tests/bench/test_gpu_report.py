"""bench/gpu_report.py without a GPU: order of stages, result file, time limit, resuming."""

import json
import shlex
import sys
import time

import pytest

from bench import gpu_report
from bench.core import machine
from bench.gpu_report import Stage

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

    def go(stages, *arguments):
        monkeypatch.setattr(gpu_report, "STAGES", tuple(stages))
        code = gpu_report.main(["--output", str(tmp_path), *arguments])
        return code, json.loads((tmp_path / "nvidia-h200.json").read_text())["stages"]

    return go


def test_stages_are_done_once_with_the_same_sources(run, monkeypatch, tmp_path):
    counter = tmp_path / "runs"
    stage = Stage("count", "", 1, python(f"open({str(counter)!r}, 'a').write('x'); print('counted')"))
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
    stages = [Stage("bad", "", 1, python("raise SystemExit('no luck')")), Stage("good", "", 1, python("print('fine')"))]
    code, found = run(stages)
    assert code == 1
    assert (found["bad"]["state"], found["good"]["state"]) == ("failed", "done")
    assert found["bad"]["last_lines"] == ["no luck"]
    code, found = run([Stage("bad", "", 1, python("pass")), stages[1]])
    assert (code, found["bad"]["state"]) == (0, "done")


def test_a_wrong_output_has_its_own_exit_code(run):
    assert run([Stage("bench", "", 1, python("raise SystemExit(2)"))])[0] == 2
    assert run([Stage("pytest", "", 1, python("raise SystemExit(1)"), wrong=1)])[0] == 2
    assert run([Stage("bench", "", 1, python("raise SystemExit(1)"))], "--stage", "bench")[0] == 1


def test_a_stage_ends_when_its_time_is_up(run):
    began = time.monotonic()
    code, found = run([Stage("slow", "", 0.02, python("import time; time.sleep(60)"))])
    assert time.monotonic() - began < 50
    assert (code, found["slow"]["state"]) == (1, "out of time")


def test_a_wrong_output_counts_also_if_the_time_is_up(run):
    code = "import sys, time\ntry:\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    sys.exit(2)"
    code, found = run([Stage("slow", "", 0.03, python(code))])
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
    process = gpu_report.begin(command, {})
    assert process.stdout is not None
    assert process.stdout.readline() == "measuring\n"
    gpu_report.stop(process)
    assert process.returncode == 0
    assert file.read_text() == "the first part"


def test_the_file_of_a_stage_is_named(run):
    code = "import sys; open(sys.argv[1], 'w').write('found')"
    _, found = run([Stage("quick", "", 1, python(code) + " {result}", "txt")])
    assert found["quick"]["result"] == "nvidia-h200-quick.txt"


def test_no_stage_is_begun_without_time(run):
    code, found = run([Stage("late", "", 1, python("pass"))], "--minutes", "0.1")
    assert (code, found["late"]["state"]) == (1, "out of time")
    assert "seconds" not in found["late"]


def test_a_missing_tool_is_named(run):
    code, found = run([Stage("tool", "", 1, "no-such-tool", tool="no-such-tool")])
    assert (code, found["tool"]["state"]) == (1, "skipped")
    assert found["tool"]["why"] == "no-such-tool is not installed"


def test_a_tool_without_access_to_the_gpu_is_skipped(run):
    code = "print('==ERROR== Device not supported'); [print('error 999') for _ in range(99)]; raise SystemExit(1)"
    code, found = run([Stage("memcheck", "", 1, python(code), wrong=1)])
    assert (code, found["memcheck"]["state"]) == (1, "skipped")
    assert found["memcheck"]["why"] == "==ERROR== Device not supported"


def test_profilers_leave_the_clocks_alone():
    (profile,) = (stage for stage in gpu_report.STAGES if stage.tool == "ncu")
    assert "--clock-control none" in profile.command


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
    assert all(stage.name in printed.out for stage in gpu_report.STAGES)
    assert gpu_report.main(["--dry-run"]) == 0


@pytest.mark.parametrize("stage", gpu_report.STAGES, ids=lambda stage: stage.name)
def test_stages_use_options_that_their_commands_have(stage, monkeypatch, capsys):
    """A misspelt option would cost minutes of a GPU."""
    words = shlex.split(stage.command.format(python=sys.executable, result="found"))
    script = next((w for w in words if w.startswith("bench/")), None)
    if script is None:
        assert "setup.py" in words or "pytest" in words
        return
    from bench import fps, ops, overhead, train_step, tune

    parse = {command.__name__.removeprefix("bench."): command for command in (fps, ops, overhead, train_step, tune)}
    parse[script.removeprefix("bench/").removesuffix(".py")].arguments(words[words.index(script) + 1 :])
