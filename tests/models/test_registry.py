"""Networks by name, and their configurations."""

import dataclasses
import json
import re

import pytest
import torch

import hyperseg
from hyperseg.models import ALIASES, PUBLISHED, VARIANTS, HyperSegConfig, create_model, list_models, model_config
from tests.models.networks import NAMES, images


def test_the_published_networks():
    assert set(list_models()) == set(NAMES) == set(PUBLISHED)
    assert hyperseg.list_models is list_models
    assert list_models() == sorted(list_models())


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("hyperseg-s", "hyperseg-s-cityscapes"),
        ("hyperseg-m", "hyperseg-m-cityscapes"),
        ("hyperseg-l", "hyperseg-l-voc"),
    ],
)
def test_aliases(alias, name):
    assert ALIASES[alias] == name
    assert model_config(alias) is VARIANTS[name]


# SPEC A.1 and A.2.
@pytest.mark.parametrize(
    ("name", "classes", "dataset", "resolution", "encoder"),
    [
        ("hyperseg-s-camvid", 12, "camvid", (576, 768), "tf_efficientnet_b1"),
        ("hyperseg-l-camvid", 12, "camvid", (768, 1024), "tf_efficientnet_b1"),
        ("hyperseg-m-cityscapes", 19, "cityscapes", (512, 1024), "tf_efficientnet_b1"),
        ("hyperseg-s-cityscapes", 19, "cityscapes", (768, 1536), "tf_efficientnet_b1"),
        ("hyperseg-l-voc", 21, "voc", (512, 512), "tf_efficientnet_b3"),
    ],
)
def test_published_configurations(name, classes, dataset, resolution, encoder):
    config = model_config(name)
    assert (config.num_classes, config.dataset, config.resolution, config.encoder) == (
        classes,
        dataset,
        resolution,
        encoder,
    )
    assert config.name == name
    assert (config.mean, config.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize("name", ["hyperseg", "hyperseg-xl", "HyperSeg-S", ""])
def test_unknown_names_list_the_choices(name):
    with pytest.raises(ValueError, match="There is no network") as caught:
        create_model(name)
    assert all(known in str(caught.value) for known in [*list_models(), *ALIASES, repr(name)])


def test_a_new_network_is_in_training_mode_with_random_weights():
    torch.manual_seed(0)
    first = create_model("hyperseg-s-camvid")
    second = create_model("hyperseg-s-camvid")
    assert first.training
    assert not torch.equal(first.encoder.trunk.conv_stem.weight, second.encoder.trunk.conv_stem.weight)


def test_xavier_initialisation():
    """SPEC A.3: all convolutions and generators, with the fans of the stored, per-group shapes."""
    torch.manual_seed(0)
    model = create_model("hyperseg-s-camvid")
    modules = [m.weight for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    for weight in [*modules, *model.decoder.generators]:
        if weight.numel() > 2000:
            area = weight[0, 0].numel()
            expected = (2 / ((weight.shape[0] + weight.shape[1]) * area)) ** 0.5
            assert weight.std().item() == pytest.approx(expected, rel=0.1)
    assert len([*modules, *model.decoder.generators]) == 128


@pytest.mark.parametrize("name", NAMES)
def test_configuration_through_json(name):
    config = model_config(name).replace(num_classes=3, dataset="custom", class_names=("a", "b", "c"))
    assert HyperSegConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_configurations_are_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        model_config("hyperseg-s").num_classes = 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 0}, "num_classes must be an integer from 1"),
        ({"num_classes": -3}, "num_classes must be an integer from 1"),
        ({"num_classes": 2.5}, "num_classes must be an integer"),
        ({"num_classes": "19"}, "num_classes must be an integer"),
        ({"num_classes": 10**30}, "num_classes must be an integer from 1 to 65536"),
        ({"context": "fpn"}, "context must be one of pyramid, unet, got 'fpn'"),
        ({"signal_ranges": "nested"}, "signal_ranges must be one of overlapping, disjoint"),
        ({"division": "fair"}, "division must be one of remainder, legacy"),
        ({"halo": "none"}, "halo must be one of own, neighbour"),
        ({"level_channels": (64, 32)}, "5 levels need 4 level_channels"),
        ({"level_channels": (64, 32, "16", 16)}, "level_channels must be a tuple of integers"),
        ({"level_channels": 64}, "level_channels must be a tuple of integers"),
        ({"kernel_sizes": (1, 1, 1, 3, 5)}, "kernel_sizes can be 1 or 3"),
        ({"kernel_sizes": (1, 3, 3), "level_channels": (8, 8)}, "five or six levels"),
        ({"feature_channels": (8, 8, 8)}, "five skip features"),
        ({"weight_groups": (32, 16, 0, 16)}, "weight_groups must be a tuple of integers from 1"),
        ({"context_levels": 0}, "context_levels must be an integer from 1"),
        ({"context_levels": 10**4}, "context_levels must be at most"),
        ({"expand_ratio": float("inf")}, "expand_ratio must be a number"),
        ({"expand_ratio": float("nan")}, "expand_ratio must be a number"),
        ({"expand_ratio": "2"}, "expand_ratio must be a number"),
        ({"class_names": ("road",)}, "1 class names were given for 19 classes"),
    ],
    ids=lambda value: next(f"{k}={v!r:.20}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_invalid_configurations(changes, message):
    with pytest.raises(ValueError, match=message):
        model_config("hyperseg-s").replace(**changes)


def test_missing_and_unknown_fields_are_named():
    values = model_config("hyperseg-s").to_dict()
    del values["halo"], values["encoder"]
    values |= {"colour": "red", "num_class": 19}
    expected = "missing fields ['encoder', 'halo'], unknown fields ['colour', 'num_class']"
    with pytest.raises(ValueError, match=re.escape(expected)):
        HyperSegConfig.from_dict(values)


def test_other_fields_can_be_changed():
    model = create_model("hyperseg-s-camvid", head_dropout=0.5, level_channels=(32, 32, 8, 8))
    assert model.encoder.head_dropout.p == 0.5
    assert [level.out_channels for level in model.decoder.plan.levels] == [32, 32, 8, 8, 12]
    with torch.inference_mode():
        assert model.eval()(images(64, 64)).shape == (1, 12, 64, 64)
