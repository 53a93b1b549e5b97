"""bench/tune.py without a GPU: its choice, its table, and that launchers read the table back."""

import dataclasses
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench import tune
from bench.core import timing
from bench.core.results import write_json
from bench.core.timing import Budget
from hyperseg.kernels import launch
from hyperseg.ops import BACKENDS

DEFAULT = {"BLOCK": 16, "num_warps": 4}
SLOW, FAST, WRONG, UNFIT = ({"BLOCK": n} for n in (8, 32, 64, 128))


def test_a_missing_gpu_is_reported(monkeypatch, capsys):
    missing = dataclasses.replace(BACKENDS["triton"], unavailable_reasons=lambda: ["this machine has no CUDA device"])
    monkeypatch.setitem(BACKENDS, "triton", missing)
    assert tune.main([]) == 1
    printed = capsys.readouterr().err
    assert printed == "bench/tune.py: There is nothing to tune here: this machine has no CUDA device.\n"


def test_the_interpreter_is_not_tuned(monkeypatch, capsys):
    monkeypatch.setitem(BACKENDS, "triton", dataclasses.replace(BACKENDS["triton"], unavailable_reasons=list))
    assert tune.main(["--device", "cpu"]) == 1
    assert "not on a CPU" in capsys.readouterr().err


def test_a_stop_keeps_what_was_measured(monkeypatch, capsys, tmp_path):
    def launcher() -> torch.Tensor:
        x = torch.arange(6.0)
        launch.options("_toy_kernel", x, DEFAULT, width=6)
        return x

    def stopped():
        raise KeyboardInterrupt

    calls = [SimpleNamespace(run=run, times=1) for run in (launcher, stopped)]
    for call in calls:
        call.to = lambda dtype, call=call: call
    monkeypatch.setattr(tune, "pick", lambda args: (torch.device("cpu"), []))
    monkeypatch.setattr(tune, "recorded", lambda *args: calls)
    monkeypatch.setattr(tune, "triton_function", lambda call: call.run)
    monkeypatch.setattr(tune, "candidates", lambda: {"_toy_kernel": [{"BLOCK": 16}]})
    path = tmp_path / "gpu.json"
    arguments = ["--model", "hyperseg-m", "--dtype", "float32", "--seconds", "0.01", "--rounds", "2"]
    assert tune.main([*arguments, "--output", str(path)]) == 130
    assert f"Finished results are in {path}" in capsys.readouterr().err
    assert list(json.loads(path.read_text())["samples"]) == ["_toy_kernel float32 width=6"]


def line(**samples: list[float]) -> tune.Line:
    return tune.Line(DEFAULT, {name: {} for name in samples}, samples)


@pytest.mark.parametrize(
    ("samples", "best"),
    [
        ({"default": [10.0, 10.1, 10.2], "a": [9.0, 9.1, 9.2], "b": [8.0, 8.1, 8.2]}, "b"),
        ({"default": [10.0, 10.1, 10.2], "a": [9.95, 9.97, 9.96]}, "default"),  # by less than LEAST_GAIN
        ({"default": [8.0, 10.1, 12.0], "a": [7.5, 9.0, 11.0]}, "default"),  # within the spread
        ({"default": [10.0, 10.1, 10.2], "a": [11.0, 11.1, 11.2]}, "default"),
        ({"default": [10.0, 10.1, 10.2]}, "default"),
    ],
)
def test_only_a_candidate_faster_beyond_the_spread_replaces_the_default(samples, best):
    assert line(**samples).best() == best


def test_a_candidate_that_failed_on_one_call_is_not_chosen():
    found = line(default=[10.0, 10.0], a=[5.0, 5.0])
    found.failed["a"] = "out of shared memory"
    assert found.best() == "default"


def test_calls_count_as_often_as_they_are_made():
    found = tune.Line(DEFAULT)
    found.add({"default": [1.0, 2.0], "a": [2.0, 2.0]}, times=1)
    found.add({"default": [10.0, 20.0], "a": [5.0, 5.0]}, times=3)
    assert found.samples == {"default": [31.0, 62.0], "a": [17.0, 17.0]}


class Clock:
    """A clock that advances when read, and when a test adds to ``now``."""

    now = 0

    def perf_counter_ns(self) -> int:
        self.now += 1000
        return self.now

    def perf_counter(self) -> float:
        return self.perf_counter_ns() / 1e9


@pytest.fixture(scope="module")
def tuner() -> tune.Tuner:
    """A tuner after one call of a launcher that is slower with small blocks and fails with two candidates."""
    x = torch.arange(6.0)
    clock = Clock()

    def launcher() -> torch.Tensor:
        block = launch.options("_toy_kernel", x, DEFAULT, width=6)["BLOCK"]
        if block == UNFIT["BLOCK"]:
            raise RuntimeError("out of resources: shared memory\nRequired: 500000")
        clock.now += 2**20 // block
        return x * 1.5 if block == WRONG["BLOCK"] else x * 2

    budget = Budget(seconds=0.02, rounds=5, warmup_seconds=0.01)
    tuner = tune.Tuner(torch.device("cpu"), budget, {"_toy_kernel": [SLOW, FAST, WRONG, UNFIT, {"BLOCK": 16}]})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "time", clock)
        tuner.call(launcher, "float32")
    return tuner


def test_candidates_are_checked_timed_and_chosen(tuner):
    (name,) = tuner.lines
    assert name == "_toy_kernel float32 width=6"
    found = tuner.lines[name]
    assert {text: len(ms) for text, ms in found.samples.items()} == {
        "default": 5,
        '{"BLOCK": 8}': 5,
        '{"BLOCK": 16}': 5,
        '{"BLOCK": 32}': 5,
    }
    assert found.samples['{"BLOCK": 16}'] == found.samples["default"]
    assert found.failed['{"BLOCK": 128}'] == "RuntimeError: out of resources: shared memory"
    (message,) = tuner.wrong
    assert '{"BLOCK": 64}' in message
    assert tuner.launches() == {name: FAST}


def test_launchers_read_the_table(tuner, monkeypatch, tmp_path):
    monkeypatch.setattr(launch, "TUNED", tmp_path)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=0: "NVIDIA H200 NVL")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=0: (9, 0))
    path = launch.table_path(torch.cuda.get_device_name())
    assert path.name == "nvidia-h200-nvl.json"
    earlier = {"launches": {"_other float16": {"BLOCK": 64}, "_toy_kernel float32 width=6": SLOW}}
    write_json(path, tune.merged(earlier, tuner))
    launch._table.cache_clear()
    tensor = SimpleNamespace(device=torch.device("cuda", 0), dtype=torch.float32)
    try:
        assert launch.options("_toy_kernel", tensor, DEFAULT, width=6) == DEFAULT | FAST
        assert launch.options("_toy_kernel", tensor, DEFAULT, width=7) == DEFAULT
        tensor.dtype = torch.float16
        assert launch.options("_other", tensor, DEFAULT) == DEFAULT | {"BLOCK": 64}
    finally:
        launch._table.cache_clear()
    assert len(json.loads(path.read_text())["samples"]["_toy_kernel float32 width=6"]["ms_by_round"]["default"]) == 5


def test_registers_apply_to_the_default_only(monkeypatch, tmp_path):
    """They are chosen for its block sizes: other block sizes run without them."""
    path, line = tmp_path / "registers.json", launch.key("_toy_kernel", torch.float32, {"width": 6})
    path.write_text(json.dumps({launch.version(): {"sm_90": {line: {"maxnreg": 56}}}}))
    monkeypatch.setattr(launch, "REGISTERS", path)
    monkeypatch.setattr(launch, "architecture", lambda x: 90)
    launch.registers.cache_clear()
    x = torch.empty(1)
    try:
        assert launch.options("_toy_kernel", x, DEFAULT, width=6) == DEFAULT | {"maxnreg": 56}
        assert launch.options("_toy_kernel", x, DEFAULT, width=7) == DEFAULT
        with launch.forced(line, FAST):
            assert launch.options("_toy_kernel", x, DEFAULT, width=6) == DEFAULT | FAST
        monkeypatch.setattr(launch, "architecture", lambda x: 80)
        assert launch.options("_toy_kernel", x, DEFAULT, width=6) == DEFAULT
    finally:
        launch.registers.cache_clear()


def test_forcing_a_line_leaves_others():
    x = torch.empty(1)
    with launch.forced(launch.key("_toy_kernel", x.dtype, {"width": 6}), FAST):
        assert launch.options("_toy_kernel", x, DEFAULT, width=6) == DEFAULT | FAST
        assert launch.options("_toy_kernel", x, DEFAULT, width=7) == DEFAULT
        with launch.forced("_toy_kernel", SLOW):
            assert launch.options("_toy_kernel", x, DEFAULT, width=7) == DEFAULT | SLOW
    assert launch.options("_toy_kernel", x, DEFAULT, width=6) == DEFAULT


def test_every_candidate_names_a_kernel_and_its_parameters():
    """A misspelt name would never be tried, a misspelt block size would only show on a GPU."""
    pytest.importorskip("triton")
    found = tune.candidates()
    assert {"patch_pointwise", "depthwise_project", "generated_pointwise", "_mbconv_fwd_expand_kernel"} <= set(found)
    modules = launch.modules()
    for name, options in found.items():
        (module,) = (m for m in modules if name in getattr(m, "CANDIDATES", {}))
        code = Path(module.__file__).read_text().split("\nCANDIDATES")[1].split("\n", 1)[1]
        assert f'"{name}"' in code, f"no launcher asks for {name}"
        unknown = {key for candidate in options for key in candidate if not re.search(rf"\b{key}\b", code)}
        assert unknown <= {"num_warps", "num_stages"}, name
