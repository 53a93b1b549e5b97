"""The ``arch`` string is parsed, never run."""

import ast

import pytest

from hyperseg.models import create_model, model_config, official_arch
from hyperseg.models.plan import decoder_plan
from tests.models.checkpoints import ARCH, ARCH_CAMVID_S
from tests.models.networks import NAMES

names = pytest.mark.parametrize("name", NAMES)


def arguments(arch):
    call = ast.parse(arch, mode="eval").body
    return ast.unparse(call.func), {k.arg: ast.literal_eval(k.value) for k in call.keywords}


@names
def test_published_networks(name):
    assert official_arch.parse(ARCH[name]) is model_config(name)


def test_the_official_spelling():
    assert official_arch.write(model_config("hyperseg-s-camvid")) == ARCH_CAMVID_S


@pytest.mark.parametrize("classes", [None, 7])
@names
def test_round_trip(name, classes):
    config = model_config(name)
    if classes:
        config = config.replace(num_classes=classes, dataset="custom")
    arch = official_arch.write(config)
    assert " " not in arch
    assert arch.endswith(f",num_classes={config.num_classes})")
    assert official_arch.parse(arch) == config
    # Only the encoder's scales lose digits.
    (factory, found), (expected_factory, expected) = arguments(arch), arguments(ARCH[name])
    assert factory == expected_factory
    assert found["kernel_sizes"] == tuple(expected["kernel_sizes"])
    for key in ("levels", "level_channels", "coords_res", "unify_level"):
        assert found.get(key) == expected.get(key)
    groups = expected["weight_groups"]
    # The unified network never reads its fifth entry (SPEC D.6).
    assert found["weight_groups"] == (groups[:4] if "unify_level" in found else groups)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("num_classes=12", "num_classes=150"), {"num_classes": 150, "dataset": "custom"}),
        (("'efficientnet-b1'", "'efficientnet-b0'"), {"encoder": "tf_efficientnet_b0", "static_padding_size": 224}),
        (("'efficientnet-b1'", "model_name='efficientnet-b1'"), {"name": "hyperseg-s-camvid"}),
        (("expand_ratio=2", "expand_ratio=3"), {"expand_ratio": 3, "name": "hyperseg-custom"}),
        (("pretrained=True", "pretrained=False"), {"name": "hyperseg-s-camvid"}),
        (("levels=2", "levels=2,out_feat_scale=0.5"), {"feature_channels": (8, 12, 20, 56, 160)}),
    ],
    ids=["classes", "encoder", "keyword", "expansion", "pretrained", "scale"],
)
def test_other_networks_of_the_same_code(change, expected):
    assert change[0] in ARCH_CAMVID_S
    config = official_arch.parse(ARCH_CAMVID_S.replace(*change))
    assert {key: getattr(config, key) for key in expected} == expected
    decoder_plan(config)


@pytest.mark.parametrize(
    ("scale", "features"),
    [(0.0625, (1, 2, 2, 7, 20)), (0.3125, (5, 8, 12, 35, 100))],
)
def test_feature_channels_round_half_to_even(scale, features):
    """SPEC B.3: 24 * 0.0625 = 1.5 -> 2, 40 * 0.0625 = 2.5 -> 2."""
    config = official_arch.parse(ARCH_CAMVID_S.replace("levels=2", f"levels=2,out_feat_scale={scale}"))
    assert config.feature_channels == features


def test_without_an_official_counterpart():
    config = create_model("hyperseg-s", encoder="resnet18").config
    with pytest.raises(ValueError, match="official code has no network like"):
        official_arch.write(config)
