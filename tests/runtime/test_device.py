"""Choice of a device."""

import pytest
import torch

from hyperseg.runtime.device import MissingDeviceError, pick_device


@pytest.fixture
def two_gpus(monkeypatch):
    """PyTorch reports two CUDA devices, of which the second is the current one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize("device", ["cuda", "auto", None, torch.device("cuda"), "cuda:1"])
def test_a_cuda_device_has_its_index(device, two_gpus):
    assert pick_device(device) == torch.device("cuda:1")


def test_a_given_index_is_kept(two_gpus):
    assert pick_device("cuda:0") == torch.device("cuda:0")


@pytest.mark.parametrize("device", ["cpu", "cpu:0", "auto", None, torch.device("cpu")])
def test_the_cpu_has_no_index(device, no_gpu):
    assert pick_device(device) == torch.device("cpu")


def test_an_index_out_of_range(two_gpus):
    with pytest.raises(MissingDeviceError, match="there is no cuda:2: PyTorch sees 2 CUDA devices here; give cpu"):
        pick_device("cuda:2")


@pytest.mark.parametrize(("version", "built"), [(None, ", built without CUDA,"), ("13.0", "")])
def test_no_cuda_device(version, built, no_gpu, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", version)
    with pytest.raises(MissingDeviceError, match=f"^there is no cuda: PyTorch{built} sees no CUDA devices here; give"):
        pick_device("cuda")


@pytest.mark.parametrize("device", ["gpu", "", "cuda:", "cuda:-1", ["cpu"], True, 1.0, torch.float32], ids=str)
def test_unknown_devices(device):
    with pytest.raises(ValueError, match=r"there is no device called .*; give auto, cpu, cuda, cuda:1, \.\.\."):
        pick_device(device)


@pytest.mark.parametrize("device", [0, "1"])
def test_the_number_of_a_gpu_is_not_enough(device):
    with pytest.raises(ValueError, match=rf"called {device}; give .*; GPU number {device} is cuda:{device}$"):
        pick_device(device)


@pytest.mark.parametrize("device", ["meta", "mps", "xpu", torch.device("mps:0")], ids=str)
def test_devices_that_networks_do_not_run_on(device):
    with pytest.raises(ValueError, match=f"networks run on the CPU and on CUDA devices, not on {device}; give auto"):
        pick_device(device)
