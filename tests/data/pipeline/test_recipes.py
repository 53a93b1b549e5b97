"""The settings of the published networks (SPEC A.2 and A.3)."""

import pytest

from hyperseg.data.pipeline.recipes import RECIPES
from hyperseg.models import list_models, model_config

# network: size, scales, crop, rotation, jitter; then size, filter and labels of validation
TABLE = {
    "hyperseg-s-camvid": ((576, 576), (0.5, 2.0), True, 0, 0, (576, 768), "bicubic", True),
    "hyperseg-l-camvid": ((768, 768), (0.75, 2.0), True, 0, 0, (768, 1024), "bicubic", True),
    "hyperseg-m-cityscapes": ((512, 1024), (0.25, 2.0), True, 0, 0, (512, 1024), "bilinear", False),
    "hyperseg-s-cityscapes": ((768, 768), (0.375, 1.5), True, 0, 0.25, (768, 1536), "bilinear", False),
    "hyperseg-l-voc": ((512, 512), (0.25, 0.9), False, 30, 0.5, (512, 512), "pad", True),
}


def test_every_network_has_a_recipe():
    assert sorted(RECIPES) == sorted(list_models()) == sorted(TABLE)


@pytest.mark.parametrize("name", TABLE)
def test_recipes_are_the_published_ones(name):
    size, scale, crop, rotation, jitter, *evaluation = TABLE[name]
    augmentation = RECIPES[name].augmentation
    assert (augmentation.size, augmentation.scale) == (size, scale)
    assert (augmentation.scale_probability, augmentation.flip) == (0.5, 0.5)
    assert (augmentation.crop, augmentation.rotation) == (crop, rotation)
    colors = augmentation.jitter
    found = set() if colors is None else {colors.brightness, colors.contrast, colors.saturation, colors.hue}
    assert found == ({jitter} if jitter else set())
    assert (colors is not None and colors.before_padding) == (name == "hyperseg-l-voc")
    prepared = RECIPES[name].evaluation
    assert [prepared.size, prepared.filter, prepared.labels] == evaluation
    assert tuple(model_config(name).resolution) == prepared.size
