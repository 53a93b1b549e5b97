"""bench/peers.py with a small network: the installed peers; missing ones are skipped with a message."""

import shutil
from types import SimpleNamespace

import numpy
import pytest
import torch

import hyperseg
from bench import peers
from bench.core import peers as core
from bench.core.errors import Refused
from bench.core.networks import calibrate, inference, synthetic_frames
from bench.core.peers import BUILDERS, RUNTIMES, Peer
from bench.core.results import read_results
from bench.core.timing import Ratio
from hyperseg.export.onnx import FrameToLabels, export_program, write_onnx
from hyperseg.models import synthesize_weights
from hyperseg.models.sizes import normalise

SIZE = (64, 96)
TINY = ["--size", "64x96", "--quick", "--iterations", "2", "--no-memory", "--threads", "1"]


@pytest.fixture(scope="module")
def model():
    """A network with a small encoder: all operators of the decoder are in it."""
    network = synthesize_weights(hyperseg.create_model("hyperseg-s-camvid", encoder="resnet18").eval())
    frames = torch.cat(synthetic_frames(2, 1, 128, 128, 1))
    with inference("reference"):
        calibrate(network, normalise(frames, network.config.mean, network.config.std).contiguous())
    return network


@pytest.fixture
def run(model, monkeypatch, tmp_path):
    def go(*extra):
        monkeypatch.setattr(peers, "load", lambda *args: (model, {"source": "synthetic"}))
        path = tmp_path / "peers.json"
        code = peers.main([*TINY, "--json", str(path), *extra])
        return code, read_results(path)

    return go


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """The folder of a run, without the ONNX files."""
    path = tmp_path_factory.mktemp("peers")
    hyperseg.save(model, path / core.MODEL)
    numpy.save(path / core.FRAME, synthetic_frames(1, 1, *SIZE, 0)[0].numpy())
    return path


@pytest.fixture(scope="module")
def expected(model, folder):
    """The labels and logits of the folder's frame, and the frame."""
    frame = numpy.load(folder / core.FRAME)
    network = FrameToLabels(model).eval()
    with inference("reference"):
        return network(torch.from_numpy(frame)), network.logits(torch.from_numpy(frame)), frame


@pytest.mark.parametrize("name", ["eager", pytest.param("compile", marks=pytest.mark.slow), "engine"])
def test_torch_peers_match(folder, expected, name):
    if name == "compile" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("torch.compile needs a C++ compiler, and this machine has none")
    labels, logits, frame = expected
    made = BUILDERS[name](folder, 1)
    with made.context():
        assert (made.labels(frame) == labels).double().mean() > 0.9999
        if made.logits is None:
            assert name == "compile"
            return
        torch.testing.assert_close(made.logits(frame), logits, rtol=1e-4, atol=1e-4 * logits.abs().max().item())


@pytest.mark.parametrize("name", list(RUNTIMES))
def test_onnx_runtimes_match(model, folder, expected, name):
    if message := core.missing(name):
        pytest.skip(message)
    labels, logits, frame = expected
    if not (folder / core.LABELS).exists():
        program = export_program(model, torch.from_numpy(frame))
        write_onnx(program, {"labels": folder / core.LABELS, "logits": folder / core.LOGITS})
    made = BUILDERS[name](folder, 1)
    with made.context():
        found = torch.as_tensor(made.labels(frame))
        assert found.dtype == torch.uint8
        assert (found == labels).double().mean() > 0.9999
        scores = torch.as_tensor(made.logits(frame))
        torch.testing.assert_close(scores, logits, rtol=1e-4, atol=1e-4 * logits.abs().max().item())


def test_memory_is_measured_in_its_own_process(folder):
    found = core.memory_in_process("eager", folder, 1)
    assert 10 < found["idle_mib"] < found["build_mib"] < 1e5
    assert 10 < found["run_mib"] < 1e5


def test_a_failed_process_gives_its_reason(tmp_path):
    """Without the runtime or, where it is installed, without its file."""
    with pytest.raises(RuntimeError, match=r"the memory of onnxruntime could not be measured: .*(onnxruntime|labels)"):
        core.memory_in_process("onnxruntime", tmp_path, 1)


def test_rows_are_complete(run, capsys):
    code, results = run("--peers", "eager,engine")
    assert code == 0
    assert results.kind == "hyperseg-peers"
    assert results.threads == 1
    eager, engine = results.rows
    assert [eager.peer, engine.peer] == ["eager", "engine"]
    for row in results.rows:
        assert row.parity_before.passed
        assert row.parity_after.passed
        assert row.parity_logits.relative < 1e-4
        assert len(row.samples.latency_ms) == row.latency_ms.n >= 2
    assert eager.over_eager.median == engine.engine_over.median == 1
    ratios = [a / b for a, b in zip(engine.throughput.by_window, eager.throughput.by_window, strict=True)]
    # The ratios were taken before the rates were rounded for the file.
    relative = 1.01e-6
    assert engine.over_eager == Ratio(
        median=pytest.approx(sum(ratios) / 2, rel=relative),
        min=pytest.approx(min(ratios), rel=relative),
        max=pytest.approx(max(ratios), rel=relative),
    )
    assert "labels agree" in capsys.readouterr().out


@pytest.mark.parametrize("fault", ["labels", "logits"])
def test_a_faulty_peer_gets_no_speed(run, monkeypatch, capsys, fault):
    def build(folder, threads):
        made = BUILDERS["eager"](folder, threads)
        labels = (lambda frame: made.labels(frame) + 1) if fault == "labels" else made.labels
        logits = (lambda frame: made.logits(frame) * 1.001) if fault == "logits" else made.logits
        return Peer("engine", "faulty", labels, logits, made.context)

    monkeypatch.setitem(BUILDERS, "engine", build)
    code, results = run("--peers", "eager,engine")
    assert code == 2
    assert [row.peer for row in results.rows] == ["eager"]
    assert "No speed for peer engine: before timing, " in capsys.readouterr().out


def test_a_peer_that_cannot_be_built_is_reported(run, monkeypatch):
    def build(folder, threads):
        raise NotImplementedError("it has no convolution")

    monkeypatch.setitem(BUILDERS, "engine", build)
    code, results = run("--peers", "eager,engine")
    assert code == 1
    assert results.models[0].refused == ["Peer engine cannot run here: it has no convolution"]


def test_missing_packages_are_reported(monkeypatch, capsys):
    found = SimpleNamespace(find_spec=lambda name: None if name == "openvino" else object())
    monkeypatch.setattr(core.importlib, "util", found)
    message = "openvino needs openvino, not installed here: pip install 'hyperseg[peers]'"
    with pytest.raises(Refused, match="not installed here"):
        peers.pick_peers("eager,openvino")
    assert peers.pick_peers(None) == ["eager", "compile", "onnxruntime", "engine"]
    assert message in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--peers", "tensorflow"], "There is no peer 'tensorflow'; there are eager, compile"),
        (["--peers", ","], "No peer was named"),
        (["--model", "hyperseg-xl"], "hyperseg-s-cityscapes"),
        (["--size", "512"], "HEIGHTxWIDTH"),
    ],
)
def test_mistakes_are_reported(capsys, arguments, message):
    try:
        code = peers.main(arguments)
    except SystemExit as stop:
        code = stop.code
    assert code == 1
    assert message in capsys.readouterr().err
