"""bench/fps.py as a whole: in process with engines at fault, and once as its users run it."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hyperseg
from bench import fps, session
from bench.report import SCHEMA_VERSION, read_json
from bench.roofline import Ceilings
from bench.subject import Refused, load

ROOT = Path(__file__).parents[2]
NAME = "hyperseg-m-cityscapes"
TINY = ["--model", "hyperseg-m", "--resolution", "64x64", "--device", "cpu", "--quick", "--iterations", "2"]


class Engine:
    """The four callables over the plain module: what is under test here is the script, not the engine."""

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
    """Run the script with an engine of this class: exit code and JSON."""

    def go(engine=Engine, *extra):
        monkeypatch.setattr(session, "load", lambda *args: loaded)
        monkeypatch.setattr(session.roofline, "measure_ceilings", lambda *args: Ceilings(1e10, 1e11, 1, 1, "float32"))
        monkeypatch.setattr(hyperseg, "build_engine", engine, raising=False)
        path = tmp_path / "fps.json"
        code = fps.main([*TINY, "--json", str(path), *extra])
        return code, read_json(path)

    return go


def test_rows_have_what_a_sceptic_asks_for(run, capsys):
    code, document = run(Engine, "--scope", "labels", "frame")
    assert code == 0
    out = capsys.readouterr().out
    assert document["schema_version"] == SCHEMA_VERSION
    assert {r["when"] for r in document["readings"]} == {"before", "after"}
    (entry,) = document["models"]
    assert [row["scope"] for row in entry["rows"]] == ["labels", "frame"]
    for row in entry["rows"]:
        assert len(row["raw"]["latency_ms"]) == row["latency_ms"]["n"] >= 2
        assert row["throughput"]["fps"] > 0
        assert row["parity_before"]["passed"]
        assert row["parity_after"]["passed"]
        assert row["work"]["flops"] > 1e8
        assert row["roofline"]["by"] in {"arithmetic", "memory"}
        assert f"scope {row['scope']}:" in out
    assert "not the published resolution" in out
    assert entry["reference"]["std"] > 1e-3
    assert entry["reference"]["classes"] >= 2


class WrongLabels(Engine):
    def labels(self, images):
        labels = super().labels(images)
        labels[:, 20:40, 30:50] += 1
        return labels


def test_wrong_labels_get_no_speed(run, capsys):
    code, document = run(WrongLabels, "--scope", "network", "labels")
    assert code == 2
    entry = document["models"][0]
    assert [row["scope"] for row in entry["rows"]] == ["network"]
    assert len(entry["refused"]) == 1
    assert "No speed for mode eager, backend auto, scope labels: before timing, only" in capsys.readouterr().out


class NormsDeleted(Engine):
    """What the official script times."""

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
    code, document = run(NormsDeleted, "--scope", "network")
    assert code == 2
    assert document["models"][0]["rows"] == []


class IgnoresItsInput(Engine):
    """A graph captured on one input and replayed without copying the next one in."""

    def network(self, images):
        if not hasattr(self, "first"):
            self.first = images.clone()
        return super().network(self.first)


def test_an_engine_that_ignores_its_input_gets_no_speed(run):
    code, document = run(IgnoresItsInput, "--scope", "network")
    assert code == 2
    assert document["models"][0]["rows"] == []


class CorruptedLater(Engine):
    def labels(self, images):
        labels = super().labels(images)
        return labels if self.calls <= 3 else torch.zeros_like(labels)


def test_an_engine_corrupted_while_timed_gets_no_speed(run, capsys):
    code, document = run(CorruptedLater, "--scope", "labels", "network")
    assert code == 2
    assert [row["scope"] for row in document["models"][0]["rows"]] == ["network"]
    assert "after timing, only" in capsys.readouterr().out


class TooLarge(Engine):
    def __init__(self, *args, **kwargs):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 80 GiB")


class NoSuchBackend(Engine):
    def __init__(self, *args, **kwargs):
        raise hyperseg.ops.BackendError("The backend 'cuda' cannot serve decoder_level: no CUDA device.")


class Broken(Engine):
    def network(self, images):
        raise RuntimeError("a fault of ours")


@pytest.mark.parametrize(
    ("engine", "sentence", "traceback"),
    [
        (TooLarge, "memory is not enough", False),
        (NoSuchBackend, "no CUDA device", False),
        (Broken, "a fault of ours", True),
    ],
)
def test_what_cannot_run_is_said(run, capsys, engine, sentence, traceback):
    code, document = run(engine, "--scope", "network")
    assert code == 1
    assert sentence in document["models"][0]["refused"][0]
    assert ("Traceback" in capsys.readouterr().err) == traceback


def test_modes_and_backends_are_compared_round_by_round(run, capsys):
    code, document = run(Engine, "--scope", "network", "--backend", "auto", "reference")
    assert code == 0
    assert [row["backend"] for row in document["models"][0]["rows"]] == ["auto", "reference"]
    assert "FPS of eager reference over eager auto, by round: network" in capsys.readouterr().out


def test_compile_that_fails_leaves_eager(run, capsys):
    def build(model, mode, **kwargs):
        if mode == "compile":
            raise torch._inductor.exc.InvalidCxxCompiler
        return Engine(model, mode=mode, **kwargs)

    _, document = run(build, "--scope", "network", "--mode", "compile")
    assert [row["mode"] for row in document["models"][0]["rows"]] == ["eager"]
    assert "Mode eager takes its place" in capsys.readouterr().out


def test_the_scope_of_the_paper(run, capsys):
    code, document = run(Engine, "--paper")
    assert code == 0
    rows = document["models"][0]["rows"]
    assert [(row["mode"], row["scope"]) for row in rows] == [("module", "paper"), ("eager", "paper")]
    assert len(rows[0]["raw"]["latency_ms"]) == 2
    assert "not a speed-up" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model", "hyperseg-xl"], "hyperseg-s-cityscapes"),
        (["--resolution", "512"], "HEIGHTxWIDTH"),
        (["--size", "512"], "HEIGHTxWIDTH"),
        (["--resolution", "0x128"], "HEIGHTxWIDTH"),
        (["--device", "tpu"], "give cpu, cuda, cuda:1, ... or auto"),
        (["--device", "cpu", "--mode", "cudagraph"], "needs a CUDA device"),
        (["--iterations", "0"], "above 0"),
        (["--seconds", "1", "--iterations", "1"], "not allowed with"),
        (["--model", "all", "--weights", "x.pth"], "belongs to one model"),
        (["--dtype", "int8"], "invalid choice"),
    ],
)
def test_mistakes_are_answered_in_a_sentence(capsys, arguments, sentence):
    try:
        code = fps.main(arguments)
    except SystemExit as stop:
        code = stop.code
    assert code == 1
    assert sentence in capsys.readouterr().err


def test_a_missing_gpu_is_said(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert fps.main(["--device", "cuda:1"]) == 1
    assert "there is no cuda:1: " in capsys.readouterr().err


def test_an_unwritable_json_is_said_before_measuring(capsys, tmp_path):
    assert fps.main([*TINY, "--json", str(tmp_path)]) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_unreadable_weights_are_said(tmp_path, capsys):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"nothing")
    assert fps.main([*TINY, "--weights", str(path)]) == 1
    assert "cannot be read" in capsys.readouterr().out


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
    with pytest.raises(Refused, match=r"not of|does not fit"):
        load("hyperseg-l-voc", path, 0)


def test_as_its_users_run_it(tmp_path):
    path = tmp_path / "fps.json"
    command = [sys.executable, "bench/fps.py", *TINY, "--threads", "1", "--json", str(path)]
    command += ["--scope", "network", "host"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert [line.split()[2] for line in done.stdout.splitlines() if line.startswith("eager ")] == ["network", "host"]
    document = json.loads(path.read_text())
    assert [row["scope"] for row in document["models"][0]["rows"]] == ["network", "host"]
    assert document["environment"]["cpu"]["threads"] == 1
