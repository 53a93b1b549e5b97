import json
import types

import pytest
import torch

from bench.core import machine
from bench.core.machine import Gpu, Watch, decode_reasons, readable

CPU = torch.device("cpu")


def test_a_cpu_is_described():
    found = machine.describe(CPU)
    json.dumps(found, allow_nan=False)
    assert found["device"]["type"] == "cpu"
    assert found["cpu"]["threads"] == torch.get_num_threads()
    assert found["software"]["torch"] == torch.__version__
    assert {"commit", "dirty"} == set(found["git"])


def test_a_cpu_has_no_gpu_readings():
    watch = Watch(CPU)
    watch.read("before")
    watch.read_if_quick("during")
    assert [r["when"] for r in watch.readings] == ["before"]
    assert "sm_clock_mhz" not in watch.summary()
    assert not any("GPU" in warning for warning in watch.warnings())


def test_missing_git_is_reported(monkeypatch):
    monkeypatch.setattr(machine, "run", lambda *command, **kwargs: None)
    assert not readable(machine.git()["commit"])


def test_throttle_reasons():
    assert decode_reasons(0) == []
    assert decode_reasons(0x24) == ["software power cap", "software thermal slowdown"]


@pytest.fixture
def gpu():
    found = Gpu(CPU)
    found.device = torch.device("cuda", 0)  # makes no CUDA call: readings come from the mocks below
    return found


def test_nvml_reading(gpu):
    def refuse(handle):
        raise RuntimeError("Not Supported")

    gpu.handle = object()
    gpu.nvml = types.SimpleNamespace(
        NVML_CLOCK_SM=1,
        NVML_CLOCK_MEM=2,
        NVML_TEMPERATURE_GPU=0,
        nvmlDeviceGetClockInfo=lambda handle, kind: 1980 if kind == 1 else 3201,
        nvmlDeviceGetMaxClockInfo=lambda handle, kind: 1980,
        nvmlDeviceGetPowerUsage=lambda handle: 312_500,
        nvmlDeviceGetEnforcedPowerLimit=refuse,
        nvmlDeviceGetTemperature=lambda handle, kind: 45,
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda handle: 0x4,
        nvmlDeviceGetComputeRunningProcesses=lambda handle: [1, 2],
    )
    state = gpu.state()
    assert state["sm_clock_mhz"] == 1980
    assert state["memory_clock_mhz"] == 3201
    assert state["power_w"] == 312.5
    assert state["throttle"] == ["software power cap"]
    assert state["power_limit_w"] == "not readable: Not Supported"

    watch = Watch(CPU)
    watch.gpu = gpu
    watch.read_if_quick("during")
    assert watch.summary("during")["sm_clock_mhz"] == [1980, 1980]
    warnings = " ".join(watch.warnings())
    assert "slowed down while measuring (software power cap)" in warnings
    assert "shared" in warnings


def test_nvidia_smi_reading(gpu, monkeypatch):
    def run(*command, **kwargs):
        query = next(part for part in command if part.startswith("--query"))
        if "clocks.sm" in query:
            return "1755, 3201, 1980, [N/A], 700.00, 38"
        if "reasons" in query:
            return "0x0000000000000001"
        return "123\n456"

    monkeypatch.setattr(machine, "run", run)
    state = gpu.state()
    assert state["source"] == "nvidia-smi"
    assert state["sm_clock_mhz"] == 1755
    assert not readable(state["power_w"])
    assert state["throttle"] == ["idle"]
    assert state["processes"] == 2


def test_neither_nvml_nor_nvidia_smi(gpu, monkeypatch):
    monkeypatch.setattr(machine, "run", lambda *command, **kwargs: None)
    state = gpu.state()
    assert all(not readable(value) for value in state.values())
    watch = Watch(CPU)
    watch.gpu = gpu
    watch.read("before")
    assert any("not readable" in warning for warning in watch.warnings())
