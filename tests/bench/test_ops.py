"""bench/ops.py: the calls that it times, and that a faulty backend gets no speed."""

import pytest
import torch

from bench import ops
from bench.core import calls
from bench.core.networks import load, synthetic_frames
from bench.core.results import read_results
from bench.core.roofline import Ceilings
from bench.core.tables import fixed
from bench.core.timing import Ratio
from hyperseg.models.plan import decoder_plan
from hyperseg.ops import BACKENDS, OPERATORS, LevelArguments
from hyperseg.ops.backends import Backend

MODELS = ("hyperseg-s-cityscapes", "hyperseg-l-voc")
TINY = ["--model", "hyperseg-m", "--size", "128x128", "--device", "cpu", "--quick", "--iterations", "2"]


@pytest.fixture(scope="module")
def loaded():
    return load("hyperseg-m-cityscapes", None, 0)


@pytest.fixture
def run(loaded, monkeypatch, tmp_path):
    """Run the command; return its exit code and results."""

    def go(*extra):
        monkeypatch.setattr(ops, "load", lambda *args: loaded)
        monkeypatch.setattr(ops.roofline, "measure_ceilings", lambda *args: Ceilings(1e10, 1e11, 1, 1, "float32", 1e8))
        path = tmp_path / "ops.json"
        code = ops.main([*TINY, "--json", str(path), *extra])
        return code, read_results(path)

    return go


@pytest.fixture
def faulty(monkeypatch):
    """A backend with wrong labels in one corner, and with wrong gradients."""

    def labels(*args):
        found = BACKENDS["reference"].supported["upsample_argmax"](*args)
        found[:, :8, :8] += 1
        return found

    def gradients(*args):
        x, weights, bias = BACKENDS["reference"].supported["patch_conv2d_backward"](*args)
        return x, weights * 1.001, bias

    made = {"upsample_argmax": labels, "patch_conv2d_backward": gradients}
    monkeypatch.setitem(BACKENDS, "faulty", Backend("faulty", "", made))


@pytest.mark.parametrize("name", MODELS)
def test_every_operator_is_recorded_at_every_level(name):
    model, _ = load(name, None, 0)
    plan = decoder_plan(model.config)
    frames = synthetic_frames(1, 1, 192, 192, 0)[0]
    found = [*calls.inference_calls(model, frames), *calls.training_calls(model, frames, backward=True)]
    made = {operator: [c for c in found if c.operator == operator] for operator in [*OPERATORS, calls.DECODER]}
    # How a network ends depends on whether its last level is as large as the image, which it reads then.
    others = {"upsample_argmax"} if model.output_stride == 1 else {"decoder_level_argmax", "normalise_frames"}
    others |= {"context_head"}  # an engine calls it on a GPU only, and not for all networks
    assert {operator for operator in made if not made[operator]} == others
    assert [LevelArguments(*c.arguments).out_channels for c in made["decoder_level"]] == [
        level.out_channels for level in plan.levels
    ]
    blocks = [level for level in plan.levels if level.hidden]
    for operator in ("patch_inverted_residual", "patch_inverted_residual_batch_norm"):
        assert [c.arguments[0].shape[1] for c in made[operator]] == [level.in_channels for level in blocks]
    assert len(made["patch_conv2d"]) == len(plan.levels) - len(blocks)
    assert len(made["decoder_level_backward"]) == len(plan.levels)


def test_what_is_recorded_is_what_the_engine_computes(loaded):
    model, _ = loaded
    found = calls.inference_calls(model, synthetic_frames(1, 1, 64, 96, 0)[0])
    last = [call for call in found if call.operator == "decoder_level"][-1]
    whole = next(call for call in found if call.operator == calls.DECODER)
    labels = next(call for call in found if call.operator == "upsample_argmax")
    assert torch.allclose(last(), labels.arguments[0], rtol=1e-4, atol=1e-4)
    assert torch.allclose(whole(), last(), rtol=1e-4, atol=1e-4)


def test_equal_calls_are_one(loaded):
    model, _ = loaded
    found = calls.inference_calls(model, synthetic_frames(1, 1, 64, 64, 0)[0])
    once = calls.distinct(found)
    twice = calls.distinct([*found, *found])
    assert len(once) == len(twice)
    assert all(b.times == 2 * a.times for a, b in zip(once, twice, strict=True))


def test_least_bytes_by_hand():
    signal, generator, bias = torch.zeros(1, 64, 2, 3), torch.zeros(40, 4), torch.zeros(5)
    skip, previous = torch.zeros(1, 6, 8, 12), torch.zeros(1, 2, 4, 6)
    level = calls.Call(
        "decoder_level", (skip, previous, signal, generator, None, bias, 8, 2, 5, 0, "own"), lambda *args: None
    )
    output = torch.zeros(1, 5, 8, 12)
    used = 2 * 4 * 2 * 3  # of the signal: two groups of four channels
    sizes = (skip.numel(), previous.numel(), used, generator.numel(), bias.numel(), output.numel())
    assert level.least_bytes(output) == 4 * sum(sizes)
    weights = calls.Call("generate_weights", (signal, [generator], [8], [2], [40]), lambda *args: None)
    assert weights.least_bytes(torch.zeros(1, 2, 3, 40)) == 4 * (used + 160 + 240)


def test_some_arguments_of_training_stay_float32():
    x, scale = torch.zeros(1, 2, 4, 4), torch.zeros(3)
    arguments = (x, x, scale, scale, 1, 1, "own", 1e-5, "")
    call = calls.Call("patch_inverted_residual_batch_norm", arguments, lambda *args: None).to(torch.float16)
    assert [a.dtype for a in call.arguments[:4]] == [torch.float16, torch.float16, torch.float32, torch.float32]


def test_rows_are_complete(run, capsys):
    code, results = run("--op", "decoder", "decoder_level", "upsample_argmax", "--backend", "reference")
    assert code == 0
    assert results.kind == "hyperseg-ops"
    (entry,) = results.models
    assert [row.operator for row in entry.rows] == ["decoder", *["decoder_level"] * 5, "upsample_argmax"]
    assert [row.of for row in entry.rows] == ["apart", *["frame"] * 6]
    for row in entry.rows:
        assert row.backend == "reference"
        assert row.parity_before.passed
        assert row.parity_after.passed
        assert len(row.samples.latency_ms) == row.latency_ms.n >= 2
        assert row.over_reference == Ratio(1, 1, 1)
        assert row.work.least_bytes > 0
        assert row.percent_of_copy > 0
    flops = [row.work.flops for row in entry.rows]
    assert flops[0] == sum(flops[1:6]), "the decoder is its levels"
    assert flops[6] is None
    assert "128x128 (height x width)" in capsys.readouterr().out


def test_each_call_has_a_limit_and_its_cause(run, capsys):
    code, results = run("--op", "stem", "upsample_argmax", "decoder", "--backend", "reference")
    assert code == 0
    rows = {row.operator: row for row in results.rows}
    stem = rows["stem"]
    assert stem.work.functions == 64 * 64 * int(stem.call.split(" -> ")[1].split("x")[0])
    assert stem.roofline.by == "SiLU"
    assert stem.roofline.seconds == pytest.approx(stem.work.functions / 1e8)
    assert rows["upsample_argmax"].work.functions == rows["decoder"].work.functions == 0
    assert rows["upsample_argmax"].roofline.by == "memory"
    for row in results.rows:
        sides = (row.percent_of_matmul or 0, row.percent_of_copy)
        assert row.roofline.percent >= max(sides) - 1e-3 * row.roofline.percent
    out = capsys.readouterr().out
    assert all(name in out for name in ("bound by", "of limit", "M SiLU", " SiLU "))
    computed = stem.work.flops / 1e11 + stem.work.functions / 1e8
    copied = rows["upsample_argmax"].roofline.seconds
    limits = [fixed(1e3 * (seconds + copied)) for seconds in (stem.roofline.seconds, computed)]
    assert "2 calls of a frame by reference: " in out
    assert f" ms, limits {limits[0]}, {limits[1]} with SiLU after the FLOPs." in out


def test_a_wrong_backend_gets_no_speed(run, faulty, capsys):
    arguments = ("--op", "upsample_argmax", "patch_conv2d_backward", "--backend", "faulty")
    code, results = run(*arguments)
    assert code == 2
    (entry,) = results.models
    assert {row.backend for row in entry.rows} == {"reference"}
    assert len(entry.refused) == 1 + 3
    out = capsys.readouterr().out
    assert "No speed for upsample_argmax" in out
    assert "backend faulty: before timing, only" in out
    assert "its largest error is" in out


def test_a_named_backend_without_an_operator_is_reported(run, faulty, capsys):
    code, results = run("--op", "decoder_level", "--backend", "faulty")
    assert code == 1
    assert results.models[0].refused == [
        "faulty does not support decoder_level here: it has no implementation of decoder_level."
    ]
    code, results = run("--op", "decoder_level", "--backend", "all")
    assert code == 0
    assert "faulty does not support decoder_level here" in capsys.readouterr().out


def test_a_frame_too_small_for_training_is_reported(capsys, monkeypatch):
    monkeypatch.setattr(ops.roofline, "measure_ceilings", lambda *args: Ceilings(1e10, 1e11, 1, 1, "float32", 1e8))
    code = ops.main(["--model", "hyperseg-m", "--size", "32x32", "--op", "patch_conv2d", "--device", "cpu", "--quick"])
    assert code == 1
    assert "32x32 is too small for a training step" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--op", "convolution"],
            "There is no operator 'convolution'; there are decoder, decoder_backward, context_head",
        ),
        (["--backend", "mkl"], "There is no backend 'mkl'; there are cpp"),
        (["--model", "hyperseg-xl"], "hyperseg-s-cityscapes"),
        (["--device", "tpu"], "there is no device called tpu; give auto, cpu, cuda, cuda:1, ..."),
        (["--dtype", "int8"], "invalid choice"),
        (["--size", "512"], "HEIGHTxWIDTH"),
    ],
)
def test_mistakes_are_reported(capsys, arguments, message):
    try:
        code = ops.main(arguments)
    except SystemExit as stop:
        code = stop.code
    assert code == 1
    assert message in capsys.readouterr().err
