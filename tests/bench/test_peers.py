"""bench/peers.py with a small network: the installed peers; missing ones are skipped with a message."""

import shutil
import sys
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
from bench.core.results import NetworkResults, Row, read_results
from bench.core.timing import Ratio, Samples, summarise, throughput
from bench.core.turns import PAUSES, Usage
from hyperseg.models import synthesize_weights
from hyperseg.models.sizes import normalise
from hyperseg.ops.backends import native
from hyperseg.runtime.parity import TOLERANCES, compare_logits

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
    images = normalise(torch.from_numpy(frame), model.config.mean, model.config.std).contiguous()
    with inference("reference"):
        logits = model(images)
    return logits.argmax(1).to(torch.uint8), logits, frame


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


@pytest.mark.parametrize("name", ["engine-bf16", "openvino-bf16"])
def test_peers_in_bfloat16_match(model, folder, expected, name):
    if message := core.missing(name):
        pytest.skip(message)
    labels, logits, frame = expected
    if name != "engine-bf16" and not (folder / core.LABELS).exists():
        peers.write_onnx(model, folder, SIZE)
    made = BUILDERS[name](folder, 1)
    assert (made.name, made.dtype) == (name, "bfloat16")
    with made.context():
        tolerance = TOLERANCES[torch.bfloat16]
        assert 100 * (torch.as_tensor(made.labels(frame)) == labels).double().mean() > tolerance.agreement
        found = compare_logits(torch.as_tensor(made.logits(frame)), logits)
        assert 1e-4 < found.relative_rms < tolerance.relative_rms


@pytest.mark.parametrize("name", [name for name in RUNTIMES if name not in core.IN_BFLOAT16])
def test_onnx_runtimes_match(model, folder, expected, name):
    if message := core.missing(name):
        pytest.skip(message)
    labels, logits, frame = expected
    if not (folder / core.LABELS).exists():
        peers.write_onnx(model, folder, SIZE)
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
        assert row.camera_over_stream.min > 0
        assert row.percent_of_matmul > 0
        assert row.camera_use.user_ms >= 0
        assert row.pauses is None
    assert eager.over_eager.median == engine.engine_over.median == 1
    assert eager.over_eager_camera.median == engine.engine_over_camera.median == 1
    (entry,) = results.models
    assert [len(speeds) for speeds in entry.sgemm_flops_per_second] == [2, 2], "by round and peer"
    ratios = [a / b for a, b in zip(engine.throughput.by_window, eager.throughput.by_window, strict=True)]
    # The ratios were taken before the rates were rounded for the file.
    relative = 1.01e-6
    assert engine.over_eager == Ratio(
        median=pytest.approx(sum(ratios) / 2, rel=relative),
        min=pytest.approx(min(ratios), rel=relative),
        max=pytest.approx(max(ratios), rel=relative),
    )
    out = capsys.readouterr().out
    assert "labels agree" in out
    assert "The engine loses " in out
    assert "page faults" in out


def test_pauses_explain_the_engine(run, capsys):
    code, results = run("--peers", "engine", "--explain")
    assert code == 0
    (engine,) = results.rows
    assert [pause.before for pause in engine.pauses] == list(PAUSES)
    assert engine.pauses[0].over_stream == Ratio(1, 1, 1)
    out = capsys.readouterr().out
    assert "times that after nothing" in out
    assert "before a frame: nothing is a stream" in out


def steady(rates, sgemm):
    samples = Samples([], [], [1] * len(rates), [1e3 / rate for rate in rates])
    row = Row(peer="engine", latency_ms=summarise([1.0]), throughput=throughput(samples), samples=samples)
    return NetworkResults(name="m", rows=[row], sgemm_flops_per_second=sgemm)


def test_rounds_that_differ_are_reported():
    assert peers.unsteady(NetworkResults(name="m")) == []
    assert peers.unsteady(steady([10, 12.9], [[1e11, 1.2e11], [1.29e11, 1.1e11]])) == []
    (rounds,) = peers.unsteady(steady([10, 10], [[1e11, 1e11], [1.4e11, 1.4e11]]))
    assert rounds.startswith("m: sgemm ran at 100 to 140 GFLOP/s, by round: the machine changed its speed")
    (within,) = peers.unsteady(steady([10, 10], [[1e11, 1.4e11], [1.2e11, 1.2e11]]))
    assert "changed by more than 1.3x between peers in 1 of 2 rounds" in within
    (frames,) = peers.unsteady(steady([10, 14], [[1e11, 1e11]]))
    assert frames == "m: rounds differ by more than 1.3x for engine."


@pytest.mark.parametrize("preemptions", [1, 40])
def test_other_programs_are_reported(preemptions):
    (row,) = steady([10], None).rows
    row.stream_use = Usage(1.0, 0.0, 0.0, 0.0, preemptions)
    found = any(f"took a CPU from the engine {preemptions} times" in text for text in peers.remarks([row]))
    assert found == (preemptions == 40)


def test_the_share_that_a_camera_loses():
    assert peers.lost(Ratio(1.25, 1.0, 2.0)) == "20.0 % (0.0 to 50.0)"
    assert peers.lost(Ratio(0.8, 0.8, 0.8)) == "-25.0 % (-25.0 to -25.0)"


def test_a_runtime_keeps_its_waiting_policy(monkeypatch, tmp_path):
    """ONNX Runtime, as a fake: threads are set, nothing about how they wait is."""
    options = SimpleNamespace()
    made = []

    def session(path, given, providers):
        made.append((path, given, providers))
        frames = SimpleNamespace(name="frames")
        return SimpleNamespace(get_inputs=lambda: [frames], run=lambda outputs, inputs: [inputs["frames"]])

    fake = SimpleNamespace(SessionOptions=lambda: options, InferenceSession=session)
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    frame = numpy.zeros((1, 2, 2, 3), numpy.uint8)
    assert core.onnxruntime(tmp_path / "x.onnx", 3)(frame)[0] is frame
    assert made == [(str(tmp_path / "x.onnx"), options, ["CPUExecutionProvider"])]
    assert vars(options) == {"intra_op_num_threads": 3, "inter_op_num_threads": 1, "log_severity_level": 3}


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
    monkeypatch.setattr(native, "cpu_capability", lambda: "avx512")
    message = "openvino needs openvino, not installed here: pip install 'hyperseg[peers]'"
    with pytest.raises(Refused, match="not installed here"):
        peers.pick_peers("eager,openvino")
    assert peers.pick_peers(None) == ["eager", "compile", "onnxruntime", "engine", "aoti"]
    printed = capsys.readouterr().out
    assert message in printed
    assert "engine-bf16 needs a CPU with AVX512-BF16 or AMX; the C++ operators use avx512 here." in printed


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
