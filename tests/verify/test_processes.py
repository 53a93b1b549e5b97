"""How children of a verification are watched: crashes, hangs, time limits. The children here only write reports."""

import itertools
import json
import os
import sys

import pytest
import torch

from hyperseg.ops.backends.verdicts import RIGHT, UNKNOWN, WRONG
from hyperseg.verify import processes
from hyperseg.verify.processes import Item, Unavailable, verify

CPU = torch.device("cpu")
ITEMS = [Item("stem", "cpp", "float32"), Item("mbconv", "cpp", "float32"), Item("mbconv", "cpp", "float16")]
ITEMS.append(Item("upsample_argmax", "cpp", "float32"))

# The child of a script: {"operator dtype": what happens there}, and "start". Without an entry a kernel is right.
CHILD = """
import json, os, signal, sys, time
script, request = json.loads(os.environ["SCRIPT"]), json.loads(sys.argv[1])
def act(step, count):
    with open(os.environ["LOG"], "a") as log:
        log.write(step + "\\n")
    what = script.get(step)
    if what == "hang" or (what == "hang once" and count == 1):
        report(hangs=True)
        time.sleep(60)
    elif what == "exit":
        print("no such device", file=sys.stderr)
        sys.exit(7)
    elif what and what.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, what))
        time.sleep(60)
    return what
def seen(step):
    with open(os.environ["LOG"], "a+") as log:
        log.seek(0)
        return log.read().splitlines().count(step) + 1
def report(**facts):
    print(json.dumps(facts), flush=True)
print("a library's message", flush=True)
act("start", seen("start"))
report(ready=True)
for operator, backend, dtype in request["items"]:
    step = f"{operator} {dtype}"
    if script.get("time") == step:
        break
    report(case="first")
    what = act(step, seen(step))
    verdict = {"operator": operator, "backend": backend, "dtype": dtype, "outcome": "right"}
    if what in ("wrong", "wrong and unusable"):
        verdict |= {"outcome": "wrong", "reason": "case first: zeros"}
    report(verdict=verdict)
    if what == "wrong and unusable":
        os._exit(0)
report(end=True)
"""


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Return a function that verifies ITEMS by scripted children: outcomes, reasons and the steps of all children."""
    monkeypatch.setattr(processes, "CODE", CHILD)
    monkeypatch.setenv("LOG", str(tmp_path / "log"))

    def verified(script: dict[str, str], seconds: float | None = None):
        monkeypatch.setenv("SCRIPT", json.dumps(script))
        found, _ = verify(ITEMS, CPU, seconds)
        verdicts = {f"{v.operator} {v.dtype}": (v.outcome, v.reason) for v in found}
        return verdicts, (tmp_path / "log").read_text().splitlines()

    return verified


def outcomes(verdicts: dict[str, tuple[str, str]]) -> dict[str, str]:
    return {step: outcome for step, (outcome, _) in verdicts.items()}


STEPS = [f"{item.operator} {item.dtype}" for item in ITEMS]


def test_all_right(run):
    verdicts, steps = run({})
    assert verdicts == dict.fromkeys(STEPS, (RIGHT, ""))
    assert steps == ["start", *STEPS]


def test_a_wrong_kernel_does_not_end_the_child(run):
    verdicts, steps = run({"mbconv float32": "wrong"})
    assert verdicts["mbconv float32"] == (WRONG, "case first: zeros")
    assert steps == ["start", *STEPS]


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL"])
def test_a_crash(run, name):
    verdicts, steps = run({"mbconv float32": name})
    assert verdicts["mbconv float32"] == (WRONG, f"case first: it ended the process ({name})")
    assert "mbconv float16" not in verdicts, "the same kernel in another dtype"
    assert outcomes(verdicts)["upsample_argmax float32"] == RIGHT
    assert steps == ["start", "stem float32", "mbconv float32", "start", "upsample_argmax float32"]


def test_an_exit(run):
    verdicts, _ = run({"stem float32": "exit"})
    assert verdicts["stem float32"] == (WRONG, "case first: it ended the process (exit status 7: no such device)")


def test_a_device_that_is_unusable_after_a_verdict(run):
    verdicts, steps = run({"mbconv float32": "wrong and unusable"})
    assert verdicts["mbconv float32"] == (WRONG, "case first: zeros")
    assert outcomes(verdicts)["upsample_argmax float32"] == RIGHT
    assert steps.count("start") == 2


def test_a_hang(run, patience):
    verdicts, steps = run({"mbconv float32": "hang"})
    assert verdicts["mbconv float32"] == (WRONG, "case first: it did not finish within 1 s")
    assert patience == [0.5, 1.0]
    assert "mbconv float16" not in verdicts
    assert outcomes(verdicts)["upsample_argmax float32"] == RIGHT
    assert steps.count("mbconv float32") == 2, "it is tried a second time, alone"


def test_a_hang_of_a_slow_machine(run, patience):
    verdicts, steps = run({"mbconv float32": "hang once"})
    assert outcomes(verdicts) == dict.fromkeys(STEPS, RIGHT)
    assert patience == [0.5]
    assert steps.count("mbconv float32") == 2


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM"])
def test_a_process_that_is_killed_from_outside(run, name):
    verdicts, _ = run({"mbconv float32": name})
    outcome, reason = verdicts["mbconv float32"]
    assert outcome == UNKNOWN
    assert name in reason
    assert outcomes(verdicts)["upsample_argmax float32"] == RIGHT


def test_many_crashes(run, monkeypatch):
    monkeypatch.setattr(processes, "MOST_FAULTS", 2)
    verdicts, _ = run({"stem float32": "SIGSEGV", "mbconv float32": "SIGSEGV"})
    assert outcomes(verdicts) == {
        "stem float32": WRONG,
        "mbconv float32": WRONG,
        "upsample_argmax float32": UNKNOWN,
    }
    assert "2 crashes or hangs" in verdicts["upsample_argmax float32"][1]


def test_time_is_up(run):
    verdicts, _ = run({"time": "mbconv float16"}, seconds=5)
    assert list(outcomes(verdicts).values()) == [RIGHT, RIGHT, UNKNOWN, UNKNOWN]
    assert verdicts["mbconv float16"][1] == "it was not reached within the time limit"


def test_no_time_at_all(run, tmp_path):
    (tmp_path / "log").touch()
    verdicts, steps = run({}, seconds=0)
    assert set(outcomes(verdicts).values()) == {UNKNOWN}
    assert steps == []


def test_a_device_that_cannot_be_used(run):
    with pytest.raises(Unavailable, match="could not use cpu: exit status 7: no such device"):
        run({"start": "exit"})


def test_a_child_that_never_starts(run, monkeypatch):
    monkeypatch.setattr(processes, "START_PATIENCE", 0.5)
    with pytest.raises(Unavailable, match=r"no sign of life"):
        run({"start": "hang"})


@pytest.mark.parametrize("program", ["", None, "/usr/bin/uwsgi", "/no/such/python"])
def test_programs_that_are_no_interpreter(monkeypatch, program):
    monkeypatch.setattr(sys, "executable", program)
    with pytest.raises(Unavailable, match="no child process can be started"):
        verify(ITEMS, CPU, None)


def test_a_frozen_program(monkeypatch):
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(Unavailable, match="no Python interpreter"):
        verify(ITEMS, CPU, None)


def test_an_interrupt_ends_the_child(monkeypatch, tmp_path):
    """No process is left over, whatever is raised while a child runs."""
    monkeypatch.setattr(processes, "CODE", "import os, sys, time; print(os.getpid(), file=sys.stderr); time.sleep(60)")
    children = []

    def interrupt(process, session, patience):
        children.append(int(process.stderr.readline()))
        raise KeyboardInterrupt

    monkeypatch.setattr(processes, "_watch", interrupt)
    with pytest.raises(KeyboardInterrupt):
        verify(ITEMS, CPU, None)
    with pytest.raises(ProcessLookupError):
        os.kill(children[0], 0)


def test_shares_keep_an_operator_together():
    items = [Item(o, "triton", d) for o, d in itertools.product("abcde", ("float32", "float16"))]
    shares = processes._shares(items, 3)
    assert sorted(itertools.chain(*shares)) == sorted(items)
    assert [sorted({i.operator for i in share}) for share in shares] == [["a", "d"], ["b", "e"], ["c"]]
    assert len(processes._shares(items, 8)) == 5


def test_kernels_to_compile_are_divided_between_processes(run, monkeypatch, tmp_path):
    monkeypatch.setattr(processes, "_cores", lambda: 8)
    monkeypatch.setenv("SCRIPT", "{}")
    found, left = verify([Item(o, "triton", "float16") for o in "abcde"], CPU, 30)
    assert sorted(v.operator for v in found) == list("abcde")
    assert all(v.outcome == RIGHT for v in found)
    assert left <= 30
    assert (tmp_path / "log").read_text().splitlines().count("start") == 4
