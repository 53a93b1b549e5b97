"""Runs on difficult labels and numbers: nothing labelled, not finite, norms without values, parts of a batch."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

import hyperseg
from hyperseg.data.errors import DataError
from hyperseg.training import ConfigError
from hyperseg.training.guard import NonFiniteError
from hyperseg.training.loop import train
from hyperseg.training.step import Stepper
from tests.training.runs import CLASSES, last_state, lines, make_folder, small, state_at

NO_VALIDATION = ["data.val=null"]
NO_NOISE = ["model.drop_path_rate=0", "model.head_dropout=0"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("data") / "boxes")


def weights(state):
    """Return the parameters in a state, by name."""
    return {k: v for k, v in state["network"].items() if "running_" not in k and "num_batches" not in k}


def moments(state):
    """Return the tensors of the optimiser in a state, by name."""
    return {f"{i}.{k}": v for i, each in state["optimizer"]["state"].items() for k, v in each.items()}


def test_twenty_steps_on_photos_of_which_one_has_no_label(tmp_path):
    data = make_folder(tmp_path / "photos", train=5, size=(128, 128), blank=(4,))
    changes = ["augmentation.crop=[128,128]", "schedule.steps=20", "optimizer.lr=0.01", "batch=4", *NO_VALIDATION]
    train(small(data, *changes), tmp_path / "run", "cpu")
    assert len(lines(tmp_path / "run")) == 20
    assert all(record["loss"] > 0 and math.isfinite(record["grad_norm"]) for record in lines(tmp_path / "run"))
    state = last_state(tmp_path / "run")
    assert all(tensor.isfinite().all() for tensor in [*state["network"].values(), *moments(state).values()])


@pytest.mark.parametrize("kind", ["cross_entropy", "bootstrapped", "ohem"])
def test_a_step_without_a_label_changes_no_weight(kind, tmp_path, capfd):
    """After steps that filled the momentum: it neither moves the weights nor is it changed."""
    data = make_folder(tmp_path / "photos", train=2, blank=(1,))
    changes = [
        "batch=1",
        "augmentation.crop=[96,96]",
        "run.save_every=1",
        "schedule.steps=8",
        "optimizer.weight_decay=0.1",
        f"loss.kind={kind}",
    ]
    train(small(data, *changes, "loss.dice=0.5", *NO_VALIDATION), tmp_path / "run", "cpu")
    records = lines(tmp_path / "run")
    empty = [record["step"] for record in records if record["labelled"] == 0]
    assert len(empty) == 4
    assert max(empty) > min(set(range(1, 9)) - set(empty))  # one comes after a step that changed something
    states = [state_at(tmp_path / "run", step) for step in range(9)]
    for record, before, after in zip(records, states[:-1], states[1:], strict=True):
        parameters = weights(after)
        same = all(torch.equal(weights(before)[key], value) for key, value in parameters.items())
        assert same == (record["step"] in empty)
        if record["step"] in empty:
            assert record["loss"] == 0
            assert record["grad_norm"] == 0
            assert all(torch.equal(moments(after)[key], value) for key, value in moments(before).items())
    assert "steps had no labelled pixel" in capfd.readouterr().err


def test_a_data_set_without_a_label_is_refused(tmp_path):
    data = make_folder(tmp_path / "photos", train=5, blank=range(5))
    with pytest.raises(DataError, match="no labelled pixel in 5 masks"):
        train(small(data), tmp_path / "run", "cpu")


def test_masks_that_cannot_be_used_are_named_before_the_first_step(tmp_path):
    data = make_folder(tmp_path / "photos", train=5)
    Image.fromarray(np.full((64, 64), 7, np.uint8)).save(data / "masks" / "train" / "photo2.png")
    (data / "masks" / "train" / "photo3.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"(?s)photo2\.png.*7.*photo3\.png"):
        train(small(data), tmp_path / "run", "cpu")
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_an_image_that_cannot_be_read_ends_the_run(tmp_path):
    data = make_folder(tmp_path / "photos", train=2)
    image = data / "images" / "train" / "photo1.png"
    kept = image.read_bytes()
    image.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"photo1\.png.*after step 0.*--resume.*hyperseg data check"):
        train(small(data, *NO_VALIDATION), tmp_path / "run", "cpu")
    image.write_bytes(kept)
    assert train(small(data, *NO_VALIDATION), tmp_path / "run", "cpu", resume=True).finished


def test_too_small_crops_are_refused_before_the_first_step(data, tmp_path):
    with pytest.raises(ConfigError, match=r"batch 1, augmentation.crop \[32, 32\].*batch of at least 2 images"):
        train(small(data, "batch=1", "augmentation.crop=[32,32]"), tmp_path / "run", "cpu")
    assert not (tmp_path / "run" / "states").exists()


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_numbers_that_are_not_finite_end_the_run(what, data, tmp_path, monkeypatch):
    """At the fourth step. The states before stay, the run names the images, and can be continued."""
    original = Stepper.__call__ if what == "loss" else Stepper._update
    calls = []

    def spoiled_step(self, images, labels, step, rate):
        if step == 3:
            images = torch.full_like(images, math.nan)
        return original(self, images, labels, step, rate)

    def spoiled_update(self, labelled):
        calls.append(1)
        if len(calls) == 4:
            self.parameters[0].grad[0] = math.inf
        return original(self, labelled)

    monkeypatch.setattr(Stepper, *(("__call__", spoiled_step) if what == "loss" else ("_update", spoiled_update)))
    config = small(data, "run.save_every=2", *NO_VALIDATION)
    with pytest.raises(NonFiniteError, match=rf"{what} is not finite at step 4; its images: .*photo\d\.png") as error:
        train(config, tmp_path / "run", "cpu")
    assert "optimizer.lr" in str(error.value)
    assert last_state(tmp_path / "run")["step"] == 2
    assert all(tensor.isfinite().all() for tensor in last_state(tmp_path / "run")["network"].values())
    assert not (tmp_path / "run" / "final").exists()
    assert len(lines(tmp_path / "run")) <= 4
    monkeypatch.undo()
    assert train(config, tmp_path / "run", "cpu", resume=True).finished
    assert [record["step"] for record in lines(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]


def test_an_update_with_infinite_gradients_is_skipped_on_the_device(data, tmp_path, monkeypatch):
    """Before the host has seen the numbers, which on a GPU may be many steps later."""
    original, kept = Stepper._update, []

    def spoiled(self, labelled):
        self.parameters[0].grad[0] = math.nan
        before = [p.detach().clone() for p in self.parameters]
        norm = original(self, labelled)
        kept.append(all(torch.equal(p, b) for p, b in zip(self.parameters, before, strict=True)))
        return norm

    monkeypatch.setattr(Stepper, "_update", spoiled)
    with pytest.raises(NonFiniteError, match="at step 1"):
        train(small(data, *NO_VALIDATION), tmp_path / "run", "cpu")
    assert kept == [True]


@pytest.mark.parametrize("kind", ["cross_entropy", "bootstrapped"])
def test_accumulation_is_the_whole_batch(kind, data, tmp_path):
    """With frozen norms; photos differ in their numbers of labelled pixels, of which crops at the border have fewer."""
    same = ["batch=4", "schedule.steps=3", "model.freeze_norms=true", "augmentation.crop=[96,96]", f"loss.kind={kind}"]
    for parts in (1, 2, 4):
        config = small(data, *same, *NO_NOISE, *NO_VALIDATION, f"speed.accumulate={parts}", "optimizer.clip=1")
        train(config, tmp_path / str(parts), "cpu", dtype=torch.float64)
    whole = last_state(tmp_path / "1")["network"]
    for parts in (2, 4):
        for key, value in last_state(tmp_path / str(parts))["network"].items():
            torch.testing.assert_close(value, whole[key], rtol=1e-9, atol=1e-9)
        found, expected = ([r["loss"] for r in lines(tmp_path / str(p))] for p in (parts, 1))
        assert found == pytest.approx(expected, rel=1e-9)


def test_recomputation_changes_nothing(data, tmp_path):
    """Neither gradients nor running statistics, which must count each batch once; drop path repeats its choices."""
    published = ["model.name=hyperseg-s-camvid", "model.encoder=tinynet_e", "model.static_padding_size=96"]
    for recompute in ("false", "true"):
        config = small(data, f"speed.recompute={recompute}", "schedule.steps=2", *published, *NO_VALIDATION)
        train(config, tmp_path / recompute, "cpu", dtype=torch.float64)
    one, two = (last_state(tmp_path / name)["network"] for name in ("false", "true"))
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-9, atol=1e-9, msg=lambda m, key=key: f"{key}: {m}")


def test_a_deterministic_run_with_every_loss(data, tmp_path):
    changes = ["run.deterministic=true", "loss.dice=0.5", "loss.lovasz=0.5", "loss.then=ohem", "schedule.steps=3"]
    try:
        train(small(data, *changes, *NO_VALIDATION), tmp_path / "run", "cpu")
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(math.isfinite(record["loss"]) for record in lines(tmp_path / "run"))


def test_bfloat16_on_a_cpu(data, tmp_path):
    train(small(data, "speed.amp=bf16", *NO_VALIDATION), tmp_path / "run", "cpu")
    assert all(math.isfinite(record["loss"]) for record in lines(tmp_path / "run"))
    assert last_state(tmp_path / "run")["network"]["decoder.generators.0"].dtype == torch.float32


def test_float16_on_a_cpu_is_refused(data, tmp_path):
    with pytest.raises(ConfigError, match=r"speed\.amp is fp16"):
        train(small(data, "speed.amp=fp16"), tmp_path / "run", "cpu")


def test_a_batch_that_parts_do_not_divide_is_refused(data, tmp_path):
    with pytest.raises(ConfigError, match="batch is 3, which 1 processes with 2 parts"):
        train(small(data, "batch=3", "speed.accumulate=2"), tmp_path / "run", "cpu")


def test_the_final_network_is_the_best(data, tmp_path, monkeypatch):
    """By validation: the scores here are 0.9 at step 2 and 0.1 later, so that of step 2 is final."""
    from hyperseg.training import run as running
    from hyperseg.training.validation import Validation

    scores = iter([0.9, 0.1, 0.1])

    def fake(*_):
        return Validation({"miou": next(scores), "per_class": None, "pixel_accuracy": None}, [])

    monkeypatch.setattr(running, "validate", fake)
    train(small(data, "validation.every=2", "run.save_every=1"), tmp_path / "run", "cpu")
    expected = state_at(tmp_path / "run", 2)["network"]
    found = hyperseg.load(tmp_path / "run" / "final").state_dict()
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    assert last_state(tmp_path / "run")["best"] == {"step": 2, "miou": 0.9}


def test_what_a_run_leaves(data, tmp_path):
    run = tmp_path / "run"
    outcome = train(small(data, "validation.every=3", "validation.pictures=2"), run, "cpu")
    assert outcome.finished
    network = hyperseg.load(run / "final")
    assert network.config.class_names == CLASSES
    assert network.config.dataset == "custom"
    records = lines(run)
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert records[0].keys() >= {"loss", "lr", "grad_norm", "labelled", "images_per_s", "wait", "memory_gb"}
    document = json.loads((run / "evaluation-val.json").read_text())
    assert document["settings"]["trained_on"] == "train"
    assert document["data"]["images"] == 2
    assert "photo0" in (run / "report-val.html").read_text()
    found = json.loads((run / "data.json").read_text())
    assert found["labels"]["pixels"][0] > 0
    assert len(found["train"]["manifest_hash"]) == 64
    assert "torch" in json.loads((run / "versions.json").read_text())["versions"]
    with Image.open(run / "pictures" / "step-00000003.jpg") as picture:
        assert picture.size == (3 * 64 + 8, 2 * 64 + 4)


def test_training_lowers_the_loss(data, tmp_path):
    changes = ["schedule.steps=60", "optimizer.lr=0.01", "model.encoder_norm_momentum=0.1", "augmentation.scale=[1,1]"]
    train(small(data, *changes, *NO_VALIDATION), tmp_path / "run", "cpu")
    losses = [record["loss"] for record in lines(tmp_path / "run")]
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:3])


@pytest.mark.slow
@pytest.mark.parametrize("what", ["encoder", "model"])
def test_compiled_steps_are_those_of_eager_ones(what, data, tmp_path):
    """Compiled code rounds otherwise; validation, states and the final network are as usual."""
    changes = ["schedule.steps=2", "optimizer.lr=1e-5", *NO_NOISE]
    for compiled in ("none", what):
        train(small(data, *changes, f"speed.compile={compiled}"), tmp_path / compiled, "cpu")
    found, expected = ([r["loss"] for r in lines(tmp_path / name)] for name in (what, "none"))
    assert found == pytest.approx(expected, rel=1e-3)
    assert hyperseg.load(tmp_path / what / "final").state_dict().keys() == last_state(tmp_path / what)["network"].keys()
