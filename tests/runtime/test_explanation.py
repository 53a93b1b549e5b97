"""``engine.explain``: the calls of a frame, their backends, work and times."""

import json

import pytest
import torch

import hyperseg
from bench.core.calls import Recorder, chained_blocks
from hyperseg.models import probe_frames
from hyperseg.ops import has_kernel
from hyperseg.runtime import Rates, build_engine, measure_rates
from hyperseg.runtime.explanation import nominal_rates
from tests.models.networks import network

SIZE = (64, 96)
RATES = Rates(1e9, 1e9)


@pytest.fixture(scope="module", params=["hyperseg-m", "hyperseg-l-camvid"])
def engine(request):
    return build_engine(network(request.param), SIZE, device="cpu", check=False)


def recorded_calls(engine, frames):
    """The calls of a frame, with the blocks of a chain in its place."""
    with Recorder() as recorder:
        engine(frames)
    names = [call.operator for call in recorder.calls]
    if "mbconv_chain" not in names:
        return recorder.calls
    at = names.index("mbconv_chain")
    return [*recorder.calls[:at], *chained_blocks(recorder.calls), *recorder.calls[at + 1 :]]


def test_calls_and_their_work(engine):
    frames = probe_frames(1, SIZE, seed=3)
    before = engine(frames)
    explained = engine.explain(frames, repeats=2, rates=RATES)
    assert torch.equal(engine(frames), before)
    recorded = recorded_calls(engine, frames)
    assert [call.operator for call in explained.calls] == [call.operator for call in recorded]
    for call, one in zip(explained.calls, recorded, strict=True):
        assert call.bytes == one.least_bytes(one())
        assert call.dtype == "float32"
        assert call.milliseconds > 0
        assert call.backend == ("cpp" if has_kernel(call.operator, "cpu") else "reference")
        times = {"arithmetic": 1e3 * (call.flops or 0) / 1e9, "memory": 1e3 * call.bytes / 1e9}
        assert call.limit_milliseconds == max(times.values())
        assert call.limited_by == max(times, key=times.get)
    total = sum(call.milliseconds for call in explained.calls) + explained.other_milliseconds
    assert total == pytest.approx(explained.timed_milliseconds)
    assert sum(call.share for call in explained.calls) <= 1
    assert (explained.size, explained.mode, explained.repeats) == (SIZE, "eager", 2)


@pytest.mark.skipif(not has_kernel("mbconv", "cpu"), reason="EfficientNet's blocks are not one call each")
def test_parts(engine):
    parts = [call.part for call in engine.explain(repeats=1).calls]
    assert {"encoder.stem", "encoder.blocks.0.0", "encoder.blocks.6.1"} <= set(parts)
    assert {f"decoder.level {i}" for i in range(1, 6)} <= set(parts)
    assert "context" in parts
    assert any(part.startswith("encoder.head") for part in parts)


def test_text_and_json(engine):
    explained = engine.explain(repeats=1, rates=RATES)
    text = str(explained)
    lines = text.splitlines()
    assert lines[0].startswith(f"{engine.config.name}, 64x96, float32 on cpu, mode eager")
    assert lines[2].split()[:4] == ["part", "operator", "backend", "shapes"]
    assert lines[2].split()[-5:] == ["limit", "ms", "by", "of", "it"]
    for line in ("all operators", "in no operator", "frame"):
        assert any(each.startswith(line) for each in lines)
    assert "1 GFLOP/s and bytes at 1.0 GB/s (given)" in text
    stored = json.loads(json.dumps(explained.to_dict()))
    assert stored["size"] == [64, 96]
    assert len(stored["calls"]) == len(explained.calls)
    assert "limit ms" not in str(engine.explain(repeats=1))


def test_notes_and_arguments(engine):
    with hyperseg.ops.use_backend("reference"):
        explained = engine.explain(repeats=1)
    assert {call.backend for call in explained.calls} == {"reference"}
    assert "The backend reference was named by the user, so no other was asked." in explained.notes
    with pytest.raises(ValueError, match="repeats is 0"):
        engine.explain(repeats=0)
    with pytest.raises(ValueError, match="This engine takes uint8 frames"):
        engine.explain(torch.zeros(1))


def test_rates(monkeypatch):
    found = measure_rates(torch.device("cpu"))
    assert found.flops_per_second > 1e8
    assert found.bytes_per_second > 1e7
    gpu = torch.device("cuda", 0)
    assert nominal_rates(torch.device("cpu"), torch.float32) is None
    for name, bandwidth in (("NVIDIA H200", 4.8e12), ("NVIDIA H100 80GB HBM3", 3.35e12), ("NVIDIA H100 PCIe", 2e12)):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        rates = nominal_rates(gpu, torch.float16)
        assert rates.bytes_per_second == bandwidth
        assert rates.flops_per_second > nominal_rates(gpu, torch.float32).flops_per_second
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A10")
    assert nominal_rates(gpu, torch.float16) is None
