"""Copies between host and GPU, counted on the fake CUDA device."""

import json
import subprocess
import sys

import pytest

SCRIPT = """
import json, sys
from tests.fakes import cuda
cuda.install()
import torch
import hyperseg
from hyperseg.models import probe_frames

model = hyperseg.synthesize_weights(hyperseg.create_model("hyperseg-s-camvid")).eval()
frames, other = probe_frames(1, (64, 64), seed=3), probe_frames(1, (64, 64), seed=4)
found = {}
for mode in ("eager", "cudagraph"):
    engine = hyperseg.build_engine(model, (64, 64), device="cuda", mode=mode, check=False)
    engine(frames)  # captures
    calls = {
        "pageable": lambda: engine.from_host(frames),
        "pinned": lambda: engine.from_host(frames.pin_memory()),
        "strided": lambda: engine.from_host(torch.cat([frames, frames], 2)[:, :, :64]),
        "device": lambda: engine(frames.cuda()).cpu(),
    }
    labels, before = {}, {}
    for name, call in calls.items():
        cuda.COPIES.clear()
        labels[name] = call()
        found[f"{mode}-{name}"] = {"copies": list(cuda.COPIES), "host": labels[name].device.type}
        before[name] = labels[name].flatten().tolist()
    changed = engine.from_host(other).flatten().tolist()
    for name in calls:
        found[f"{mode}-{name}"] |= {"labels": before[name], "later": labels[name].flatten().tolist(), "next": changed}
json.dump(found, sys.stdout)
"""


@pytest.fixture(scope="module")
def runs() -> dict[str, dict]:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("mode", ["eager", "cudagraph"])
def test_from_host_copies_once_each_way(mode: str, runs):
    """There is no copy on the device, and frames in pageable memory are staged in pinned memory."""
    for frames in ("pinned", "pageable", "strided"):
        assert runs[f"{mode}-{frames}"]["copies"] == ["pinned to device", "device to pinned"]


def test_labels_on_the_device_are_copied_out_of_the_graph(runs):
    assert runs["cudagraph-device"]["copies"].count("device to device") == 2  # into the captured input, and out
    assert "device to device" not in runs["eager-device"]["copies"]


def test_labels_in_host_memory_can_be_kept(runs):
    for name, run in runs.items():
        assert run["host"] == "cpu", name
        assert run["labels"] == runs["eager-pinned"]["labels"] == run["later"] != run["next"], name
