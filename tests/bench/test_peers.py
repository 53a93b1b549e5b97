"""bench/peers.py: with a small network, whatever is installed; what is not is skipped in words."""

import json
import shutil
from types import SimpleNamespace

import numpy
import pytest
import torch

import hyperseg
from bench import inputs, memory, onnx_form, peer, peer_run, peers, runtimes
from bench.peer import BUILDERS, Peer
from bench.report import read_json
from bench.subject import Refused, settings
from hyperseg.models import synthesize_weights

SIZE = (64, 96)
TINY = ["--size", "64x96", "--quick", "--iterations", "2", "--no-memory", "--threads", "1"]


@pytest.fixture(scope="module")
def model():
    """A small encoder: what is under test is the form, which the operators fill."""
    network = synthesize_weights(hyperseg.create_model("hyperseg-s-camvid", encoder="resnet18").eval())
    frames = torch.cat(inputs.frames(2, 1, 128, 128, 1))
    with settings("reference"):
        inputs.temper(network, inputs.normalise(frames, network.config.mean, network.config.std))
    return network


@pytest.fixture
def run(model, monkeypatch, tmp_path):
    def go(*extra):
        monkeypatch.setattr(peer_run, "load", lambda *args: (model, {"source": "synthetic"}))
        path = tmp_path / "peers.json"
        code = peers.main([*TINY, "--json", str(path), *extra])
        return code, read_json(path)

    return go


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """As a run fills it, but for the ONNX files."""
    path = tmp_path_factory.mktemp("peers")
    hyperseg.save(model, path / peer.MODEL)
    numpy.save(path / peer.FRAME, inputs.frames(1, 1, *SIZE, 0)[0].numpy())
    return path


def expected(model, folder):
    """The labels and logits of the folder's frame, and the frame."""
    frame = numpy.load(folder / peer.FRAME)
    network = onnx_form.LabelsAndLogits(model).eval()
    with settings("reference"):
        return *network(torch.from_numpy(frame)), frame


@pytest.mark.parametrize("name", ["eager", pytest.param("compile", marks=pytest.mark.slow), "engine"])
def test_torch_peers_answer_the_same(model, folder, name):
    if name == "compile" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("torch.compile needs a C++ compiler, and this machine has none")
    labels, logits, frame = expected(model, folder)
    made = BUILDERS[name](folder, 1)
    with made.context():
        assert (made.labels(frame) == labels).double().mean() > 0.9999
        if made.logits is None:
            assert name == "compile"
            return
        torch.testing.assert_close(made.logits(frame), logits, rtol=1e-4, atol=1e-4 * logits.abs().max().item())


def test_the_exported_form_has_no_operator_of_ours(model, folder):
    labels, logits, frame = expected(model, folder)
    program = onnx_form.export(model, torch.from_numpy(frame))
    called = {node.target for node in program.graph.nodes if node.op == "call_function"}
    assert len(called) > 10
    assert not [target for target in called if getattr(target, "namespace", "") == "hyperseg"]
    found = program.module()(torch.from_numpy(frame))
    assert torch.equal(found[0], labels)
    torch.testing.assert_close(found[1], logits)


@pytest.mark.parametrize("name", list(runtimes.RUNTIMES))
def test_runtimes_answer_the_same(model, folder, name):
    if sentence := runtimes.missing(name):
        pytest.skip(sentence)
    labels, logits, frame = expected(model, folder)
    if not (folder / runtimes.LABELS).exists():
        onnx_form.write(onnx_form.export(model, torch.from_numpy(frame)), folder)
    made = BUILDERS[name](folder, 1)
    with made.context():
        answer = torch.as_tensor(made.labels(frame))
        assert answer.dtype == torch.uint8
        assert (answer == labels).double().mean() > 0.9999
        scores = torch.as_tensor(made.logits(frame))
        torch.testing.assert_close(scores, logits, rtol=1e-4, atol=1e-4 * logits.abs().max().item())


def test_memory_is_of_a_process_of_its_own(folder):
    found = memory.in_a_process("eager", folder, 1)
    assert 10 < found["idle_mib"] < found["build_mib"] < 1e5
    assert 10 < found["run_mib"] < 1e5


def test_a_process_that_fails_says_why(tmp_path):
    """Without the runtime or, where it is installed, without its file."""
    with pytest.raises(RuntimeError, match=r"the memory of onnxruntime could not be measured: .*(onnxruntime|labels)"):
        memory.in_a_process("onnxruntime", tmp_path, 1)


def test_rows_have_what_a_sceptic_asks_for(run, capsys):
    code, document = run("--peers", "eager,engine")
    assert code == 0
    assert document["kind"] == "hyperseg-peers"
    assert document["threads"] == 1
    (entry,) = document["models"]
    eager, engine = entry["rows"]
    assert [eager["peer"], engine["peer"]] == ["eager", "engine"]
    for row in entry["rows"]:
        assert row["parity_before"]["passed"]
        assert row["parity_after"]["passed"]
        assert row["parity_logits"]["relative"] < 1e-4
        assert len(row["raw"]["latency_ms"]) == row["latency_ms"]["n"] >= 2
    assert eager["over_eager"]["median"] == engine["engine_over"]["median"] == 1
    ours, theirs = engine["throughput"]["fps_by_window"], eager["throughput"]["fps_by_window"]
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    # The file keeps rates to 5 decimals; the ratios were taken before, so they agree to the rounding of both.
    relative = 1.01 * 2 * 0.5e-5 / min(ours + theirs)
    assert engine["over_eager"] == {
        "median": pytest.approx(sum(ratios) / 2, rel=relative),
        "min": pytest.approx(min(ratios), rel=relative),
        "max": pytest.approx(max(ratios), rel=relative),
    }
    assert "labels agree" in capsys.readouterr().out
    json.dumps(document, allow_nan=False)


@pytest.mark.parametrize("fault", ["labels", "logits"])
def test_a_peer_at_fault_gets_no_speed(run, monkeypatch, capsys, fault):
    def build(folder, threads):
        made = BUILDERS["eager"](folder, threads)
        labels = (lambda frame: made.labels(frame) + 1) if fault == "labels" else made.labels
        logits = (lambda frame: made.logits(frame) * 1.001) if fault == "logits" else made.logits
        return Peer("engine", "at fault", labels, logits, made.context)

    monkeypatch.setitem(BUILDERS, "engine", build)
    code, document = run("--peers", "eager,engine")
    assert code == 2
    (entry,) = document["models"]
    assert [row["peer"] for row in entry["rows"]] == ["eager"]
    assert "No speed for peer engine: before timing, " in capsys.readouterr().out


def test_a_peer_that_cannot_be_built_is_said(run, monkeypatch):
    def build(folder, threads):
        raise NotImplementedError("it has no convolution")

    monkeypatch.setitem(BUILDERS, "engine", build)
    code, document = run("--peers", "eager,engine")
    assert code == 1
    assert document["models"][0]["refused"] == ["Peer engine cannot run here: it has no convolution"]


def test_what_is_not_installed_is_said(monkeypatch, capsys):
    found = SimpleNamespace(find_spec=lambda name: None if name == "openvino" else object())
    monkeypatch.setattr(runtimes.importlib, "util", found)
    sentence = "openvino needs openvino, not installed here: pip install 'hyperseg[peers]'"
    with pytest.raises(Refused, match="not installed here"):
        peer_run.pick_peers("eager,openvino")
    assert peer_run.pick_peers(None) == ["eager", "compile", "onnxruntime", "engine"]
    assert sentence in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--peers", "tensorflow"], "There is no peer 'tensorflow'; there are eager, compile"),
        (["--peers", ","], "No peer was named"),
        (["--model", "hyperseg-xl"], "hyperseg-s-cityscapes"),
        (["--size", "512"], "HEIGHTxWIDTH"),
    ],
)
def test_mistakes_are_answered_in_a_sentence(capsys, arguments, sentence):
    try:
        code = peers.main(arguments)
    except SystemExit as stop:
        code = stop.code
    assert code == 1
    assert sentence in capsys.readouterr().err
