"""Several sizes, streams and pipelines of one engine: on the CPU, and on the fake CUDA device (streams.py)."""

import gc
import json
import subprocess
import sys
import threading
import weakref

import pytest
import torch

from hyperseg.models import probe_frames
from hyperseg.runtime import EngineError, build_engine
from hyperseg.runtime import engine as engine_module
from hyperseg.runtime.graphs import Captured, GraphPool
from tests.models.networks import network

S = "hyperseg-s-camvid"
SIZE = (33, 40)
FRAMES = probe_frames(5, SIZE, seed=3)


@pytest.fixture(scope="module")
def engine():
    return build_engine(network(S), SIZE, device="cpu", check=False)


def pointers(engine):
    return [p.data_ptr() for p in engine.folded.parameters()]


def test_another_size_shares_the_weights(engine):
    other = engine.at((40, 65), batch=2)
    assert pointers(other) == pointers(engine)
    assert (other.size, other.batch, other.padded) == ((40, 65), 2, engine.config.padded_size((40, 65)))
    assert (engine.size, engine.batch, engine.parity) == (SIZE, 1, None)
    assert other.parity.relative_rms < 1e-4
    frames = probe_frames(2, (40, 65), seed=3)
    built = build_engine(network(S), (40, 65), device="cpu", batch=2, check=False)
    assert torch.equal(other(frames), built(frames))
    assert torch.equal(other.logits(frames), built.logits(frames))
    assert engine.at([33, 40], check=False).batch == 1


@pytest.mark.parametrize("name", [S, "hyperseg-l-voc"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_another_size_is_compared(name, dtype, monkeypatch):
    engine = build_engine(network(name), SIZE, dtype=dtype, device="cpu", check=False)
    assert engine.at((48, 64)).parity is not None
    from_frames = engine_module.FoldedNetwork.from_frames
    monkeypatch.setattr(
        engine_module.FoldedNetwork,
        "from_frames",
        lambda self, frames, labels=True: from_frames(self, frames, labels) * (1 if labels else 2),
    )
    with pytest.raises(EngineError, match=r"Engine output .* does not match the module"):
        engine.at((48, 64))
    assert engine.at((48, 64), check=False).parity is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((64,),), r"size must be \(height, width\)"),
        (((64, 0),), "size and batch must be positive"),
        (((64, 64), 0), "size and batch must be positive"),
    ],
)
def test_bad_arguments(arguments, message, engine):
    with pytest.raises(ValueError, match=message):
        engine.at(*arguments)


def test_an_engine_is_freed_with_its_last_reference(engine):
    other = engine.at((40, 64), check=False)
    other(probe_frames(1, (40, 64)))
    freed = weakref.ref(other)
    gc.disable()
    try:
        del other
        assert freed() is None
    finally:
        gc.enable()


def test_threads_with_a_stream_each(engine):
    expected = [engine(frame[None])[0] for frame in FRAMES]
    found = [False] * 3

    def work(i):
        own = engine.stream()
        found[i] = all(torch.equal(own(f[None])[0], e) for f, e in zip(FRAMES, expected, strict=True))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(found)
    assert pointers(engine.stream()) == pointers(engine)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_pipeline_on_the_cpu(batch, engine):
    engine = engine.at(SIZE, batch=batch, check=False)
    padded = torch.cat([FRAMES, torch.zeros(-5 % batch, *SIZE, 3, dtype=torch.uint8)])
    expected = torch.cat([engine(part) for part in padded.split(batch)])[:5]
    labels = list(engine.pipeline(iter(FRAMES)))
    assert [tuple(each.shape) for each in labels] == [SIZE] * 5
    assert torch.equal(torch.stack(labels), expected)
    assert list(engine.pipeline([])) == []
    read = []
    pipeline = engine.pipeline(frame for frame in FRAMES if read.append(1) is None)
    assert torch.equal(next(pipeline), expected[0])
    assert len(read) == batch
    pipeline.close()


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (FRAMES[:1], ValueError, r"takes uint8 frames \[33, 40, 3\] .* single frames, without a batch dimension"),
        (FRAMES[0, :32], ValueError, r"got uint8 \[32, 40, 3\]; give frames of its engine's size"),
        (FRAMES[0].float(), ValueError, "got float32"),
        (FRAMES[0].numpy(), TypeError, r"got numpy\.ndarray; convert an array with torch\.from_numpy\(frame\)"),
        (FRAMES[0].to_sparse(), ValueError, "dense frames in host memory"),
    ],
    ids=["batch", "size", "dtype", "numpy", "sparse"],
)
def test_a_bad_frame_comes_after_the_labels_of_those_before_it(batch, bad, error, message, engine):
    labels = []
    with pytest.raises(error, match=message):
        labels.extend(engine.at(SIZE, batch=batch, check=False).pipeline([FRAMES[0], FRAMES[1], bad, FRAMES[2]]))
    assert len(labels) == 2


def test_a_graph_pool_is_not_opened_again_once_it_is_empty(monkeypatch):
    """PyTorch gives a pool back with its last graph, and fails where its handle is used once more."""
    handles = iter(range(1, 9))
    used = []
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(handles))
    monkeypatch.setattr(
        "hyperseg.runtime.graphs.capture", lambda run, device, pool: (used.append(pool), torch.zeros(1))
    )
    pool = GraphPool()
    first, second = (Captured(abs, torch.device("cpu"), pool) for _ in range(2))
    for captured in (first, second):
        pool.capture(captured, lambda: None)
    del first, second, captured
    third = Captured(abs, torch.device("cpu"), pool)
    pool.capture(third, lambda: None)
    assert used == [1, 1, 2]


# ---------------------------------------------------------------------------------------------------------------------
# The fake CUDA device


@pytest.fixture(scope="module")
def runs() -> dict:
    command = [sys.executable, "-m", "tests.runtime.streams"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


modes = pytest.mark.parametrize("mode", ["eager", "cudagraph"])


@modes
def test_pipelines_with_asynchronous_streams(mode, runs):
    found = runs[mode]["pipeline"]
    copies = ["device to device"] if mode == "cudagraph" else []  # into the graph's input, and out of it
    assert found.pop("copies") == [*copies, "device to pinned", "pinned to device"]
    assert found.pop("none") == []
    assert found.pop("on its way after closing") == 0
    assert found.pop("read ahead") == (5 if mode == "eager" else 2)  # two batches
    assert found == dict.fromkeys(
        ("in order", "overwritten frames", "own stream", "error", "first", "two at once"), True
    )


@modes
def test_streams_and_sizes_with_asynchronous_streams(mode, runs):
    found = runs[mode]["stream"]
    assert found.pop("larger") == [2, 40, 64]
    if mode == "cudagraph":
        assert found.pop("pools") == [0, 0, 2], "sizes share a pool, a stream has one of its own"
    assert found == dict.fromkeys(("device", "host", "logits", "after another size", "one memory"), True)


@modes
def test_calls_are_explained_outside_of_a_graph(mode, runs):
    operator, source, notes = runs[mode]["explanation"]
    assert (operator, source) == ("stem", "nominal rates of H200")
    assert any(note.startswith("The calls were timed outside of the CUDA graph") for note in notes) == (
        mode == "cudagraph"
    )


@pytest.mark.parametrize("wait", ["wait_event", "synchronize"])
def test_a_missing_wait_is_seen(wait, runs):
    assert not runs[f"without {wait}"]
