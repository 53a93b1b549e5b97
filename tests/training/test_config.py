"""Recipes and options: what is read, what is refused, and that a printed configuration is a recipe."""

import pytest
import yaml

from hyperseg.models import PUBLISHED
from hyperseg.training import ConfigError, TrainingConfig, load_recipe, recipe_names

RECIPES = recipe_names()


@pytest.mark.parametrize("name", RECIPES)
def test_a_printed_recipe_is_the_same_recipe(name, tmp_path):
    config = load_recipe(name)
    file = tmp_path / "printed.yaml"
    file.write_text(config.to_yaml())
    assert load_recipe(file) == config


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_names_a_network(name):
    assert load_recipe(name).model.name in PUBLISHED


def test_there_is_a_recipe_for_every_published_network():
    assert set(PUBLISHED) <= set(RECIPES)


def test_the_published_recipes_are_the_official_ones():
    """Learning rate, batch, steps, crop, scales and loss as in SPEC A.3."""
    expected = {
        "hyperseg-s-camvid": (1e-3, 2, 120_000, (576, 576), (0.5, 2.0), "bootstrapped"),
        "hyperseg-l-camvid": (1e-3, 16, 15_000, (768, 768), (0.75, 2.0), "bootstrapped"),
        "hyperseg-m-cityscapes": (1e-3, 16, 90_000, (512, 1024), (0.25, 2.0), "bootstrapped"),
        "hyperseg-s-cityscapes": (1e-3, 16, 90_000, (768, 768), (0.375, 1.5), "bootstrapped"),
        "hyperseg-l-voc": (1e-4, 32, 100_000, (512, 512), (0.25, 0.9), "cross_entropy"),
    }
    found = {}
    for name in PUBLISHED:
        c = load_recipe(name)
        a = c.augmentation
        found[name] = (c.optimizer.lr, c.batch, c.steps, a.crop, a.scale, c.loss.kind)
        assert (c.optimizer.name, c.optimizer.betas, c.optimizer.weight_decay) == ("adam", (0.5, 0.999), 0.0)
        assert (c.optimizer.encoder_lr, c.optimizer.clip, c.schedule.warmup) == (1.0, None, 0)
        assert (a.scale_probability, a.flip, c.data.order, c.loss.class_weights) == (0.5, 0.5, "replacement", "none")
        assert c.loss.kind == "cross_entropy" or (c.loss.bootstrap, c.loss.threshold) == (4096, 0.3)
        assert (c.model.encoder_weights, c.run.ema, c.speed.amp) == ("default", None, "none")
    assert found == expected
    assert load_recipe("hyperseg-s-cityscapes").augmentation.jitter == (0.25,) * 4
    voc = load_recipe("hyperseg-l-voc")
    assert (voc.augmentation.jitter, voc.augmentation.rotation, voc.schedule.unit) == ((0.5,) * 4, 30.0, "epoch")


def test_another_batch_keeps_the_number_of_samples():
    assert load_recipe("hyperseg-s-camvid", ["batch=16"]).steps == 15_000


def test_changes():
    changes = ["optimizer.lr=1e-4", "augmentation.crop=[64, 96]", "run.ema=null", "data.options={images: 5}"]
    config = load_recipe("folder", changes)
    assert (config.optimizer.lr, config.augmentation.crop, config.run.ema) == (1e-4, (64, 96), None)
    assert config.data.options == {"images": 5}


def test_changes_that_belong_together_have_no_order():
    changes = ["validation.resize=pad", "validation.size=[64,96]"]
    assert load_recipe("folder", changes) == load_recipe("folder", reversed(changes))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("optimizer: {lr: 1e-3}", ["optimizer.lr", "the text '1e-3'", "a number", "write 0.001"]),
        ("speed: {amp: off}", ["speed.amp", "truth value false", "none, bf16 or fp16", "write none"]),
        ("speed: {amp: fp8}", ["speed.amp", "'fp8'", "none, bf16 or fp16"]),
        ("optimizer: {weight-decay: 0.1}", ["optimizer.weight-decay", "is optimizer.weight_decay meant?"]),
        ("optimizers: {lr: 0.1}", ["optimizers", "is optimizer meant?"]),
        ("batch: 16.0", ["batch", "16.0", "a whole number"]),
        ("batch: true", ["batch", "truth value", "a whole number"]),
        ("batch: 0", ["batch is 0"]),
        ("batch: 2\nbatch: 4", ["line 2", "batch occurs twice"]),
        ("data: {name: no}", ["data.name", "truth value false", "quotes"]),
        ("data: {train: train}", ["data.train", "a list of texts"]),
        ("model: resnet18", ["model is the text", "name, encoder"]),
        ("augmentation: {crop: [64]}", ["augmentation.crop", "a list of 2 whole numbers"]),
        ("augmentation: {scale: [2, 1]}", ["augmentation.scale", "the smallest and the largest"]),
        ("run: {ema: 1}", ["run.ema"]),
        ("run: {seed: -5}", ["run.seed is -5"]),
        ("optimizer: {lr: .inf}", ["optimizer.lr is inf"]),
        ("validation: {size: [0, 64]}", ["validation.size is [0, 64]"]),
        ("speed: {compile: encoder, recompute: true}", ["speed.recompute does not work with speed.compile"]),
        ("1: 2", ["the key 1 is not a text"]),
        ("- batch", ["expected lines such as"]),
        ("batch: [", ["not valid YAML", "line"]),
    ],
)
def test_messages_name_file_and_key(text, words, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_recipe(file)
    for word in ["mine.yaml", *words]:
        assert word in str(error.value)


def test_steps_are_needed(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("schedule: {epochs: 3}")
    with pytest.raises(ConfigError, match=r"schedule\.steps is missing"):
        load_recipe(file)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("lr", "give KEY=VALUE"),
        ("lr=1", "there is no key lr"),
        ("optimiser.lr=1", "there is no section optimiser"),
        ("optimizer.lr=fast", "optimizer.lr is the text 'fast'"),
        ("optimizer.lr=-1", "optimizer.lr is -1"),
    ],
)
def test_changes_that_are_refused(change, words):
    with pytest.raises(ConfigError, match="--set") as error:
        load_recipe("folder", [change])
    assert words in str(error.value)


def test_a_missing_recipe_lists_those_there_are():
    with pytest.raises(ConfigError, match="camvid-demo"):
        load_recipe("hyperseg-xl")


def test_the_configuration_of_every_section_survives_yaml():
    values = yaml.safe_load(load_recipe("camvid-demo").to_yaml())
    assert TrainingConfig.from_dict(values) == load_recipe("camvid-demo")
    assert values["loss"]["class_weights"] == "sqrt_median_frequency"
