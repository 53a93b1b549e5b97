"""bench/train_step.py with a small network: its rows, the comparison, memory, and what cannot be measured."""

import math
from types import SimpleNamespace

import pytest
import torch

from bench import train_step
from bench.core import parity, rivals, training
from bench.core.errors import Refused
from bench.core.parity import BadReference, Parity, StepTolerance
from bench.core.results import ProcessMemory, Row, read_results
from bench.core.timing import Samples, summarise, throughput
from bench.core.training import Setting, Task, Trainer, plain
from hyperseg.models import VARIANTS
from hyperseg.training import load_recipe
from hyperseg.training.noise import seed_step
from hyperseg.training.step import Stepper
from tests.training.runs import TINY

QUICK = ["--model", "tiny", "--size", "64x64", "--batch", "2", "--quick", "--iterations", "2", "--no-memory"]
TASK = Task("tiny", (64, 64), 2, seed=0)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def tiny_network(monkeypatch):
    """A network of 0.4 million parameters, with the recipe of HyperSeg-S on CamVid."""
    monkeypatch.setitem(VARIANTS, "tiny", TINY)
    config = load_recipe("hyperseg-s-camvid", ["model.name=tiny"])
    found = training.recipe
    monkeypatch.setattr(training, "recipe", lambda name: config if name == "tiny" else found(name))


@pytest.fixture
def run(tmp_path):
    def go(*extra):
        path = tmp_path / "train.json"
        code = train_step.main([*QUICK, "--json", str(path), *extra])
        return code, read_results(path)

    return go


def test_rows_are_complete(run, capsys):
    code, results = run("--backend", "cpp", "--contiguous", "--peers")
    assert code == 0
    assert results.kind == "hyperseg-train-step"
    entry = results.models[0]
    assert (entry.resolution, entry.batch, entry.published_resolution) == ([64, 64], 2, [576, 576])
    assert [(row.backend, row.layout, row.blocks) for row in entry.rows] == [
        ("reference", "contiguous", "plain"),
        ("reference", "channels-last", "plain"),
        ("cpp", "channels-last", "plain"),
        ("cpp", "contiguous", "plain"),
        ("cpp", "channels-last", "lean"),
    ]
    base = entry.rows[0].throughput.by_window
    for row in entry.rows:
        assert row.parity_before.passed
        assert row.parity_after.passed
        assert len(row.samples.latency_ms) == row.latency_ms.n >= 2
        assert all(items % 2 == 0 for items in row.samples.window_items)
        ratios = [a / b for a, b in zip(row.throughput.by_window, base, strict=True)]
        assert row.over_reference.median == pytest.approx(sum(ratios) / len(ratios), rel=1e-5)
    assert entry.rows[0].over_reference.median == 1
    out = capsys.readouterr().out
    assert "times plain" in out
    assert "Autocast none: the fastest is cpp" in out


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("fault", ["loss", "gradient", "nan"])
def test_a_row_that_does_not_match_gets_no_speed(run, monkeypatch, capsys, when, fault):
    right, calls = Trainer.first_step, []

    def first_step(self):
        loss, gradients = right(self)
        if self.backend == "cpp":
            calls.append(self)
            if when == "before" or calls.count(self) > 1:
                largest = max(gradients, key=lambda g: g.norm())
                loss *= 1.001 if fault == "loss" else 1
                largest.mul_({"gradient": 1.2, "nan": math.nan}.get(fault, 1))
        return loss, gradients

    monkeypatch.setattr(Trainer, "first_step", first_step)
    code, results = run("--backend", "cpp", "--peers")
    assert code == 2
    assert {row.backend for row in results.rows} == {"reference"}
    message = f"No speed for row cpp, channels-last, plain blocks, eager: {when} timing, "
    assert message in capsys.readouterr().out
    assert len(results.models[0].refused) == 2


def test_a_row_that_cannot_run_is_reported(run, monkeypatch):
    build = training.build

    def fails(task, setting, device):
        if setting.backend == "cpp":
            raise NotImplementedError("it has no gradient")
        return build(task, setting, device)

    monkeypatch.setattr(training, "build", fails)
    code, results = run("--backend", "cpp", "--peers")
    assert code == 1
    message = "Row cpp, channels-last, plain blocks, eager cannot run here: it has no gradient"
    assert message in results.models[0].refused
    assert len(results.rows) == 2


def test_a_degenerate_reference_is_reported(run, monkeypatch):
    """A comparison with it would prove nothing."""
    right = Trainer.first_step
    monkeypatch.setattr(Trainer, "first_step", lambda self: (math.nan, right(self)[1]))
    code, results = run("--backend", "cpp", "--peers")
    assert code == 1
    assert results.rows == []
    assert "The reference's loss or gradients are not finite" in results.models[0].refused[0]


def test_a_peer_is_measured(run):
    pytest.importorskip("torchvision")
    code, results = run("--backend", "cpp", "--peers", "lraspp_mobilenet_v3_large")
    assert code == 0
    row = results.rows[-1]
    assert (row.peer, row.layout, row.amp) == ("lraspp_mobilenet_v3_large", "channels-last", "none")
    assert row.about.startswith("torchvision ")
    assert row.parity_before is None
    assert row.over_reference.median > 0


def test_missing_packages_are_reported(monkeypatch, capsys):
    found = SimpleNamespace(find_spec=lambda name: None if name.startswith("segmentation") else object())
    monkeypatch.setattr(rivals.importlib, "util", found)
    known = rivals.FOR_TRAINING
    with pytest.raises(Refused, match="smp_fpn needs segmentation_models_pytorch, not installed here: pip install"):
        rivals.pick(["smp_fpn"], known, print)
    assert rivals.pick(None, known, print) == ["lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large"]
    assert "pip install segmentation-models-pytorch" in capsys.readouterr().out
    assert rivals.pick([], known, print) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--peers", "unet"], "There is no peer 'unet'; there are lraspp"),
        (["--fits", "--device", "cpu"], "--fits needs a CUDA device"),
        (["--model", "hyperseg-xl"], "hyperseg-s-cityscapes"),
        (["--batch", "0"], "a number above 0"),
    ],
)
def test_mistakes_are_reported(capsys, arguments, message):
    try:
        code = train_step.main(arguments)
    except SystemExit as stop:
        code = stop.code
    assert code == 1
    assert message in capsys.readouterr().err


def test_a_network_without_recipe_is_reported(monkeypatch):
    with pytest.raises(Refused, match="other has no recipe"):
        training.recipe("other")


# What is timed


def test_the_timed_step_is_that_of_training():
    """A trainer's steps and those of hyperseg.training's parts, put together here, are equal bit for bit."""
    trainer = training.build(TASK, Setting("cpp"), CPU)
    assert isinstance(trainer.stepper, Stepper)
    assert trainer.stepper.objective.config == load_recipe("hyperseg-s-camvid").loss
    other = training.build(TASK, Setting("cpp"), CPU)
    for i in range(2):
        with trainer.context():
            figures = trainer.step(i)
        seed_step(0, i)
        batch = other.inputs[i]
        other.network.train()
        assert torch.equal(figures, other.stepper(batch.images, batch.labels, i, 1e-3))
    assert all(torch.equal(a, b) for a, b in zip(trainer.network.parameters(), other.network.parameters(), strict=True))


def test_a_first_step_can_be_repeated():
    """It begins with the initial weights, statistics and optimiser, without dropout, and leaves dropout as it was."""
    trainer = training.build(TASK, Setting("cpp"), CPU)
    rates = [m.p for m in trainer.network.modules() if isinstance(m, torch.nn.Dropout)]
    assert max(rates) > 0
    loss, gradients = trainer.first_step()
    with trainer.context():
        for i in range(3):
            trainer.step(i)
    loss2, gradients2 = trainer.first_step()
    assert loss2 == loss
    assert all(torch.equal(a, b) for a, b in zip(gradients, gradients2, strict=True))
    assert [m.p for m in trainer.network.modules() if isinstance(m, torch.nn.Dropout)] == rates


def test_batches():
    """Two different ones, with all classes and ignored pixels, in the memory format of the setting."""
    one, two = training.build(TASK, Setting("cpp"), CPU).inputs
    assert not torch.equal(one.images, two.images)
    assert one.labels.dtype == torch.uint8
    assert 255 in one.labels.unique().tolist()
    assert one.images.is_contiguous(memory_format=torch.channels_last)
    assert training.build(TASK, plain("none"), CPU).inputs[0].images.is_contiguous()


def test_settings(monkeypatch):
    args = train_step.arguments(["--device", "cpu", "--compile", "none", "model", "--amp", "none", "bf16"])
    monkeypatch.setattr(train_step.shutil, "which", lambda name: name)
    made = train_step.TrainStepRun(args, CPU, ["tiny"], train_step.pick_budget(args, CPU))
    found = [str(setting) for setting in made.settings()]
    assert found[:7] == [
        "reference, contiguous, plain blocks, eager",
        "reference, channels-last, plain blocks, eager",
        "reference, channels-last, plain blocks, compile model",
        "cpp, channels-last, plain blocks, eager",
        "cpp, channels-last, lean blocks, eager",
        "cpp, channels-last, plain blocks, compile model",
        "reference, contiguous, plain blocks, eager, bf16",
    ]
    assert len(found) == 12


def test_the_largest_batch(monkeypatch):
    args = train_step.arguments(["--device", "cpu"])
    made = train_step.TrainStepRun(args, CPU, ["tiny"], train_step.pick_budget(args, CPU))
    tried = []

    def build(task, setting, device):
        tried.append(task.batch)
        if task.batch > 20:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return training_build(task, setting, device)

    training_build = training.build
    monkeypatch.setattr(training, "build", build)
    assert made.largest_batch(TASK, Setting("cpp")) == 16
    assert tried == [2, 4, 8, 16, 32]
    assert made.largest_batch(Task("tiny", (64, 64), 32, 0), Setting("cpp")) is None


# Memory


def test_memory_is_measured_in_its_own_process():
    task = Task("hyperseg-s-camvid", (64, 64), 2, 0)
    found = training.memory_in_process(task, Setting("cpp"), 1)
    assert 10 < found["idle_mib"] < found["build_mib"] < 1e5
    assert found["idle_mib"] < found["run_mib"] < 1e5


def test_a_failed_process_gives_its_reason():
    with pytest.raises(RuntimeError, match=r"the memory of nothing could not be measured: KeyError: 'nothing'"):
        training.memory_in_process(Task("hyperseg-s-camvid", (64, 64), 2, 0, "nothing"), Setting("cpp"), 1)


def test_ratios_are_to_plain_pytorch_in_the_same_type():
    def row(rates, used, amp, **fields):
        samples = Samples([1.0], [], [2] * len(rates), [2e3 / rate for rate in rates])
        memory = ProcessMemory(100.0, 150.0, 100.0 + used)
        setting = {"backend": "reference", "layout": "contiguous", "blocks": "plain", "mode": "eager", **fields}
        statistics = {"latency_ms": summarise(samples.latency_ms), "throughput": throughput(samples)}
        return Row(samples=samples, memory=memory, amp=amp, **setting, **statistics)

    rows = [
        row([10, 20, 30], 400, "none"),
        row([20, 50, 60], 100, "none", backend="cpp", layout="channels-last", blocks="lean"),
        row([100], 50, "bf16", backend="cpp"),
        row([50], 200, "none", peer="other"),
    ]
    rows[3].throughput = rows[0].throughput
    train_step.compare(rows)
    assert (rows[1].over_reference.median, rows[1].over_reference.max) == pytest.approx((2, 2.5))
    assert rows[1].memory_over_reference == 0.25
    assert rows[2].over_reference is None
    assert rows[3].memory_over_reference == 0.5
    assert "2.00 (2.00 to 2.50) times plain PyTorch, with 0.25 times its memory" in train_step.remarks(rows)[0]


# Comparison of steps

GRADIENTS = [torch.full((100,), 2.0), torch.full((4,), 1e-9), torch.ones(10, 10)]


def step(loss=1.0, changed=None, factor=1.0):
    gradients = [g.clone() for g in GRADIENTS]
    if changed is not None:
        gradients[changed] *= factor
    return parity.compare_step(loss, gradients, (1.0, GRADIENTS), parity.STEP_TOLERANCE)


def test_an_equal_step():
    assert step() == Parity(True, max_abs=0, relative=0, rms=0)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"loss": 1.01}, "the error of its loss is 1.0e-02"),
        ({"changed": 0, "factor": 1.5}, "the error of its gradients together is 4.5e-01"),
        ({"changed": 2, "factor": 1.01}, None),
        ({"changed": 1, "factor": 1e6}, "the error of its worst gradient is"),
        ({"changed": 1, "factor": -10}, None),
        ({"changed": 2, "factor": math.inf}, "not finite"),
        ({"loss": math.nan}, "not finite"),
    ],
)
def test_errors_of_a_step(arguments, reason):
    """A gradient that is 0 but for rounding may differ by rounding of the others."""
    found = step(**arguments)
    assert found.passed == (reason is None)
    assert (reason or "") in found.reason


def test_a_small_gradient_that_is_wrong():
    """It hardly changes the gradients together."""
    gradients = [GRADIENTS[0], torch.full((1,), 0.5), GRADIENTS[2]]
    wrong = [gradients[0], -gradients[1], gradients[2]]
    found = parity.compare_step(1.0, wrong, (1.0, gradients), StepTolerance(1e-4, 0.1, 0.1))
    assert "worst gradient is 2.0e+00" in found.reason


def test_in_16_bit_floats_the_reference_says_what_is_allowed():
    own = Parity(True, max_abs=1e-3, relative=0.2, rms=0.02)
    assert parity.loosened_step(own) == StepTolerance(4e-3, 0.08, 0.8)
    assert parity.loosened_step(Parity(True, max_abs=0, relative=0, rms=0)) == parity.STEP_TOLERANCE


def test_a_reference_that_is_not_finite():
    with pytest.raises(BadReference):
        parity.compare_step(1.0, GRADIENTS, (math.nan, GRADIENTS), parity.STEP_TOLERANCE)


def test_rows_in_bfloat16_need_plain_pytorch_first():
    reference = train_step.Reference((1.0, GRADIENTS))
    with pytest.raises(Refused, match="plain PyTorch in bf16 did not run"):
        reference.check(Setting("cpp", amp="bf16"), 1.0, GRADIENTS)
    rough = [g * 1.05 for g in GRADIENTS]
    assert reference.check(plain("bf16"), 1.01, rough).passed
    assert reference.check(Setting("cpp", amp="bf16"), 1.02, rough).passed
    assert not reference.check(Setting("cpp"), 1.02, rough).passed
