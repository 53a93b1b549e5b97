"""bench/fps.py: in process with faulty engines, and once as users run it."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hyperseg
from bench import fps
from bench.core import frame_peers, rivals
from bench.core.errors import Refused
from bench.core.networks import load
from bench.core.results import SCHEMA_VERSION, read_results
from bench.core.roofline import Ceilings
from hyperseg.models import VARIANTS
from hyperseg.models.released import released_path
from tests.training.runs import TINY as TINY_NETWORK

ROOT = Path(__file__).parents[2]
NAME = "hyperseg-m-cityscapes"
TINY = ["--model", "hyperseg-m", "--resolution", "64x64", "--device", "cpu", "--quick", "--iterations", "2"]


class Engine:
    """The four entry points over the plain module: these tests are about the command, not the engine."""

    def __init__(self, model, size, dtype, device, mode, batch):
        self.model, self.size, self.mode = model, size, mode
        self.calls = 0

    def network(self, images):
        return self.model.forward_strided(images)

    def labels(self, images):
        self.calls += 1
        return self.model(images).argmax(1).to(torch.uint8)

    def __call__(self, frames):
        config = self.model.config
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (config.mean, config.std))
        return self.labels((frames.permute(0, 3, 1, 2) / 255 - mean) / std)

    def from_host(self, frames):
        return self(frames)


@pytest.fixture(scope="module")
def loaded():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield load(NAME, None, 0)
    torch.set_num_threads(threads)


@pytest.fixture
def run(loaded, monkeypatch, tmp_path):
    """Run the command with an engine of this class; return its exit code and results."""

    def go(engine=Engine, *extra, network=loaded):
        monkeypatch.setattr(fps, "load", lambda *args: network)
        monkeypatch.setattr(fps.roofline, "measure_ceilings", lambda *args: Ceilings(1e10, 1e11, 1, 1, "float32"))
        monkeypatch.setattr(hyperseg, "build_engine", engine, raising=False)
        path = tmp_path / "fps.json"
        code = fps.main([*TINY, "--json", str(path), *extra])
        return code, read_results(path)

    return go


def test_rows_are_complete(run, capsys):
    code, results = run(Engine, "--scope", "labels", "frame")
    assert code == 0
    out = capsys.readouterr().out
    assert {r["when"] for r in results.readings} == {"before", "after"}
    (entry,) = results.models
    assert [row.scope for row in entry.rows] == ["labels", "frame"]
    for row in entry.rows:
        assert len(row.samples.latency_ms) == row.latency_ms.n >= 2
        assert row.throughput.rate > 0
        assert row.parity_before.passed
        assert row.parity_after.passed
        assert row.work.flops > 1e8
        assert row.roofline.by in {"arithmetic", "memory"}
        assert f"scope {row.scope}:" in out
    assert "not the published resolution" in out
    assert entry.reference["std"] > 1e-3
    assert entry.reference["classes"] >= 2


class WrongLabels(Engine):
    def labels(self, images):
        labels = super().labels(images)
        labels[:, 20:40, 30:50] += 1
        return labels


def test_wrong_labels_get_no_speed(run, capsys):
    code, results = run(WrongLabels, "--scope", "network", "labels")
    assert code == 2
    (entry,) = results.models
    assert [row.scope for row in entry.rows] == ["network"]
    assert len(entry.refused) == 1
    assert "No speed for mode eager, backend auto, scope labels: before timing, only" in capsys.readouterr().out


class NormsDeleted(Engine):
    """The network that the official script times."""

    def network(self, images):
        norms = [m for m in self.model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        kept = [(norm.weight.data, norm.bias.data) for norm in norms]
        try:
            for norm in norms:
                norm.weight.data = torch.sqrt(norm.running_var + norm.eps)
                norm.bias.data = norm.running_mean.clone()
            return super().network(images)
        finally:
            for norm, (weight, bias) in zip(norms, kept, strict=True):
                norm.weight.data, norm.bias.data = weight, bias


def test_a_network_without_its_norms_gets_no_speed(run):
    code, results = run(NormsDeleted, "--scope", "network")
    assert code == 2
    assert results.models[0].rows == []


class IgnoresItsInput(Engine):
    """A graph captured on one input and replayed without copying the next one in."""

    def network(self, images):
        if not hasattr(self, "first"):
            self.first = images.clone()
        return super().network(self.first)


def test_an_engine_that_ignores_its_input_gets_no_speed(run):
    code, results = run(IgnoresItsInput, "--scope", "network")
    assert code == 2
    assert results.models[0].rows == []


class CorruptedLater(Engine):
    def labels(self, images):
        labels = super().labels(images)
        return labels if self.calls <= 3 else torch.zeros_like(labels)


def test_an_engine_corrupted_while_timed_gets_no_speed(run, capsys):
    code, results = run(CorruptedLater, "--scope", "labels", "network")
    assert code == 2
    assert [row.scope for row in results.rows] == ["network"]
    assert "after timing, only" in capsys.readouterr().out


class TooLarge(Engine):
    def __init__(self, *args, **kwargs):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 80 GiB")


class NoSuchBackend(Engine):
    def __init__(self, *args, **kwargs):
        raise hyperseg.ops.BackendError("The backend 'cuda' does not support decoder_level: no CUDA device.")


class Broken(Engine):
    def network(self, images):
        raise RuntimeError("a bug")


@pytest.mark.parametrize(
    ("engine", "message", "traceback"),
    [
        (TooLarge, "memory is not enough", False),
        (NoSuchBackend, "no CUDA device", False),
        (Broken, "a bug", True),
    ],
)
def test_an_engine_that_cannot_run_is_reported(run, capsys, engine, message, traceback):
    code, results = run(engine, "--scope", "network")
    assert code == 1
    assert message in results.models[0].refused[0]
    assert ("Traceback" in capsys.readouterr().err) == traceback


def test_modes_and_backends_are_compared_round_by_round(run, capsys):
    code, results = run(Engine, "--scope", "network", "--backend", "auto", "reference")
    assert code == 0
    assert [row.backend for row in results.rows] == ["auto", "reference"]
    assert "FPS of eager reference over eager auto, by round: network" in capsys.readouterr().out


def test_compile_that_fails_leaves_eager(run, capsys):
    def build(model, mode, **kwargs):
        if mode == "compile":
            raise torch._inductor.exc.InvalidCxxCompiler
        return Engine(model, mode=mode, **kwargs)

    _, results = run(build, "--scope", "network", "--mode", "compile")
    assert [row.mode for row in results.rows] == ["eager"]
    assert "Mode eager takes its place" in capsys.readouterr().out


def test_the_scope_of_the_paper(run, capsys):
    code, results = run(Engine, "--paper")
    assert code == 0
    rows = results.rows
    assert [(row.mode, row.scope) for row in rows] == [("module", "paper"), ("eager", "paper")]
    assert len(rows[0].samples.latency_ms) == 2
    assert rows[0].throughput.rate == pytest.approx(2e3 / sum(rows[0].samples.latency_ms))
    assert "not a speed-up" in " ".join(capsys.readouterr().out.split())


class Small(torch.nn.Module):
    """A network of others: scores at stride 8, in a dictionary."""

    def __init__(self, classes):
        super().__init__()
        self.conv, self.norm = torch.nn.Conv2d(3, classes, 9, stride=8, padding=4), torch.nn.BatchNorm2d(classes)

    def forward(self, images):
        return {"out": self.norm(self.conv(images))}


class Changing(Small):
    """Each call has other scores."""

    def forward(self, images):
        return {"out": super().forward(images)["out"] + 5 * torch.rand(1, self.conv.out_channels, 1, 1)}


class Overflowing(Small):
    def forward(self, images):
        return {"out": super().forward(images)["out"] / 0.0}


@pytest.fixture
def beside(run, monkeypatch):
    """Run --peers with one network of others, of this class."""

    monkeypatch.setitem(VARIANTS, "tiny", TINY_NETWORK)
    small = load("tiny", None, 0)

    def go(network, *extra, engine=Engine):
        rival = rivals.Rival(
            "torchvision",
            lambda classes, encoder: network(classes),
            scores=lambda output: output["out"],
            licence="MIT",
            link="https://example.org/small",
            published="12.3 %",
        )
        monkeypatch.setattr(rivals, "RIVALS", {"small": rival})
        monkeypatch.setattr(rivals, "FOR_FRAMES", ("small",))
        monkeypatch.setattr(frame_peers, "TRIAL_STEPS", 1)
        return run(engine, "--mode", "eager", "--peers", *extra, network=small)

    return go


def test_a_network_beside_others(beside, capsys):
    code, results = beside(Small)
    assert code == 0
    (entry,) = results.models
    assert [(row.kind, row.peer) for row in entry.rows] == [
        ("official", ""),
        ("without-norms", ""),
        ("folded", ""),
        ("engine", ""),
        ("other", "small"),
    ]
    official, removed, folded, engine, small = entry.rows
    assert (official.mode, official.layout, official.over_reference.median) == ("eager", "contiguous", 1)
    assert folded.tried_ms.keys() == {"eager contiguous", "eager channels-last"}
    assert engine.layout == ""
    assert removed.parity_before is None
    for row in (official, folded, engine, small):
        assert row.parity_before.passed
        assert row.parity_after.passed
    for row in entry.rows:
        assert row.scope == "frame"
        assert len(row.samples.latency_ms) == row.latency_ms.n >= 2
        assert row.over_reference.median > 0
        assert row.work.flops > 0
    assert small.parameters < official.parameters == engine.parameters
    assert small.work.flops == 2 * 8 * 8 * 12 * 3 * 9 * 9
    assert "norms folded, random weights" in small.about
    out = capsys.readouterr().out
    assert "norms removed: another network" in out
    assert "not compared" in out
    assert "100.000 %, with itself" in out
    assert "its authors publish 12.3 % mIoU; https://example.org/small." in out


def test_wrong_labels_beside_others_get_no_speed(beside, capsys):
    code, results = beside(Small, engine=WrongLabels)
    assert code == 2
    assert [row.kind for row in results.rows] == ["official", "without-norms", "folded", "other"]
    assert "No speed for engine, mode eager: before timing, only" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("network", "code", "message"),
    [
        (Changing, 2, "No speed for small, mode eager: before timing, "),
        (Overflowing, 1, "Row small cannot run here: its scores are not finite."),
    ],
)
def test_another_network_that_is_wrong_gets_no_speed(beside, capsys, network, code, message):
    found, results = beside(network)
    assert found == code
    assert [row.kind for row in results.rows] == ["official", "without-norms", "folded", "engine"]
    assert message in capsys.readouterr().out


def test_a_mode_that_fails_is_left_out(beside, capsys, monkeypatch):
    def fails(*args, **kwargs):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", fails)
    code, results = beside(Small, "--mode", "eager", "compile")
    assert code == 1
    assert results.models[0].refused == ["Row folded, compile cannot run here (RuntimeError): no compiler"]
    assert [(row.kind, row.mode) for row in results.rows][-1] == ("other", "eager")
    assert "small: mode compile (RuntimeError: no compiler) is left out." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--peers", "--paper"], "different scopes"),
        (["--peers", "--scope", "network"], "the scope frame"),
        (["--peers", "--backend", "cpp", "reference"], "one backend"),
        (["--peers", "unet"], "no peer 'unet'"),
        (["--peers", "pidnet_s"], "git clone https://github.com/XuJiacong/PIDNet, then --pidnet FOLDER"),
        (["--ddrnet", "x"], "--ddrnet is for --peers"),
        (["--model", "hyperseg-xl"], "hyperseg-s-cityscapes"),
        (["--resolution", "512"], "HEIGHTxWIDTH"),
        (["--size", "512"], "HEIGHTxWIDTH"),
        (["--resolution", "0x128"], "HEIGHTxWIDTH"),
        (["--device", "tpu"], "there is no device called tpu; give auto, cpu, cuda, cuda:1, ..."),
        (["--device", "cpu", "--mode", "cudagraph"], "needs a CUDA device"),
        (["--iterations", "0"], "above 0"),
        (["--seconds", "1", "--iterations", "1"], "not allowed with"),
        (["--model", "all", "--weights", "x.pth"], "belongs to one model"),
        (["--dtype", "int8"], "invalid choice"),
    ],
)
def test_mistakes_are_reported(capsys, arguments, message):
    try:
        code = fps.main(arguments)
    except SystemExit as stop:
        code = stop.code
    assert code == 1
    assert message in capsys.readouterr().err


def test_a_missing_gpu_is_reported(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert fps.main(["--device", "cuda:1"]) == 1
    assert "there is no cuda:1: " in capsys.readouterr().err


def test_an_unwritable_file_is_reported_before_measuring(capsys, tmp_path):
    assert fps.main([*TINY, "--json", str(tmp_path)]) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_unreadable_weights_are_reported(tmp_path, capsys):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"nothing")
    assert fps.main([*TINY, "--weights", str(path)]) == 1
    assert f"{path} is damaged or not a PyTorch checkpoint" in capsys.readouterr().out


@pytest.mark.parametrize("official", [True, False])
def test_weights_of_a_file(loaded, tmp_path, official):
    model, _ = loaded
    if official:
        file = path = tmp_path / "weights.pth"
        hyperseg.save_official(model, path)
    else:
        path = hyperseg.save(model, tmp_path / "weights")
        file = path / "model.safetensors"
    found, about = load(NAME, path, 0)
    assert about == {"source": path.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    assert torch.equal(found.decoder.generators[0], model.decoder.generators[0])
    with pytest.raises(Refused, match=r"contains hyperseg-m-cityscapes, not hyperseg-l-voc|does not fit"):
        load("hyperseg-l-voc", path, 0)


def test_weights_by_name(loaded, tmp_path, monkeypatch):
    monkeypatch.setenv("HYPERSEG_CACHE", str(tmp_path))
    monkeypatch.setenv("HYPERSEG_OFFLINE", "1")
    file = released_path(NAME)
    hyperseg.save_official(loaded[0], file)
    about = load(NAME, Path(NAME), 0)[1]
    assert about == {"source": NAME, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    with pytest.raises(Refused, match="are not in the cache"):
        load("hyperseg-l-voc", Path("hyperseg-l"), 0)


def test_as_users_run_it(tmp_path):
    path = tmp_path / "fps.json"
    command = [sys.executable, str(ROOT / "bench/fps.py"), *TINY, "--threads", "1", "--json", str(path)]
    command += ["--scope", "network", "host"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert [line.split()[2] for line in done.stdout.splitlines() if line.startswith("eager ")] == ["network", "host"]
    document = json.loads(path.read_text())
    assert document["schema_version"] == SCHEMA_VERSION
    assert [row["scope"] for row in document["models"][0]["rows"]] == ["network", "host"]
    assert document["environment"]["cpu"]["threads"] == 1
