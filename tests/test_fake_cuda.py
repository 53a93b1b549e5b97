"""Commands and tests written for a GPU, run on the fake CUDA device of tests/fakes/cuda.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real GPU")


def on_fake_gpu(*command: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "tests.fakes.cuda", *command],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def measured(path: Path, command: str, *arguments: str) -> dict:
    settings = ("--quick", "--iterations", "1", "--backend", "reference", "--json", str(path))
    done = on_fake_gpu(command, *arguments, *settings)
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(path.read_text())
    (entry,) = document["models"]
    assert document["environment"]["device"]["type"] == "cuda"
    assert entry["refused"] == []
    return entry


def test_modes(tmp_path):
    entry = measured(tmp_path / "fps.json", "bench/fps.py", "--model", "hyperseg-s", "--size", "96x128")
    assert {(row["mode"], row["scope"]) for row in entry["rows"]} == {
        (mode, scope) for mode in ("eager", "cudagraph") for scope in ("network", "labels", "frame", "host")
    }
    assert all(row["device_ms"]["n"] >= 1 for row in entry["rows"])


def test_operators_are_timed_in_graphs(tmp_path):
    operators = ("decoder", "stem", "upsample_cross_entropy")
    found = ("--model", "hyperseg-m", "--size", "64x96", "--batch", "2", "--backward", "--op", *operators)
    entry = measured(tmp_path / "ops.json", "bench/ops.py", *found)
    names = {row["operator"] for row in entry["rows"]}
    assert names == {*operators, "decoder_backward", "upsample_cross_entropy_backward"}
    for row in entry["rows"]:
        assert row["calls_in_graph"] >= 1
        (graph_ms,) = row["samples"]["latency_ms"]
        assert row["latency_ms"]["p50"] == pytest.approx(graph_ms / row["calls_in_graph"], rel=1e-4)
        assert row["peak_memory_mib"] is not None


def test_an_engine_on_the_gpu():
    chosen = "test_on_the_gpu and s-camvid-float32 or test_the_gpu_is_the_default"
    done = on_fake_gpu("-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", "tests/runtime", "-k", chosen)
    assert "3 passed" in done.stdout, done.stdout + done.stderr


REFUSED = {
    "two devices": ("torch.ones(2) + torch.ones(2, device='cuda')", "on the same device"),
    "synchronising while capturing": ("x = torch.ones(2, device='cuda'); x.sum().item()", "stream is capturing"),
    "a copy from the host while capturing": ("torch.ones(2).to('cuda')", "stream is capturing"),
    "a copy to the host while capturing": ("torch.ones(2, device='cuda').cpu()", "stream is capturing"),
    "a NumPy array": ("torch.ones(2, device='cuda').numpy()", "can't convert cuda:0"),
}


TRY_ALL = """
import contextlib, json, sys, torch
from tests.fakes import cuda as fake_cuda

fake_cuda.install()
errors = {}
for mistake, code in json.load(sys.stdin).items():
    graph = torch.cuda.graph(torch.cuda.CUDAGraph()) if "capturing" in mistake else contextlib.nullcontext()
    try:
        with graph:
            exec(code)
    except Exception as error:
        errors[mistake] = str(error)
print(json.dumps(errors))
"""


@pytest.fixture(scope="module")
def errors() -> dict[str, str]:
    """The error of each mistake, all made in one process."""
    codes = json.dumps({mistake: code for mistake, (code, _) in REFUSED.items()})
    command = [sys.executable, "-c", TRY_ALL]
    done = subprocess.run(command, cwd=ROOT, input=codes, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("mistake", REFUSED)
def test_mistakes_are_refused_as_on_a_gpu(errors, mistake):
    _, message = REFUSED[mistake]
    assert message in errors[mistake]


LOSSES = """
import sys, torch
from tests.fakes import cuda as fake_cuda

fake_cuda.install()
from hyperseg import ops
from hyperseg.ops import reference

check_values = sys.modules["hyperseg.ops.upsample_cross_entropy"]._check_values
weight = torch.tensor([1.0, 0.0, 2.0], device="cuda")
logits = torch.randn(2, 3, 4, 4, device="cuda", requires_grad=True)
for dtype, first in ((torch.int64, 1), (torch.int64, -1), (torch.uint8, 3)):
    labels = torch.full((2, 8, 8), first, dtype=dtype, device="cuda")
    labels[:, 1:] = 2
    for bootstrap in (0, 20):
        args = logits, labels, weight, 255, bootstrap, 0.3
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            loss, weights = reference.upsample_cross_entropy(*args)
            check_values((loss, weights), *args)
            (gradient,) = torch.autograd.grad(reference.weighted_cross_entropy(logits, labels, weights), logits)
            if first == 1:
                ops.upsample_cross_entropy(logits, labels, weight=weight, bootstrap=bootstrap).backward()
        assert [bool(t.isnan().any().cpu()) for t in (loss, gradient)] == [first != 1] * 2
try:
    ops.check_labels(labels, 3)
except ValueError as error:
    print(error)
"""


def test_a_loss_reads_nothing_back_to_the_host():
    """In a capture, which refuses that, a label that is no class gives NaN. The fake runs operators on the CPU, so the
    reference and the check of values are called directly."""
    done = subprocess.run([sys.executable, "-c", LOSSES], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "check_labels: 16 labels are outside 0..2 and not 255 (ignored), such as [3]" in done.stdout
