"""Learning rates of the recipes at chosen steps, against numbers worked out by hand from SPEC A.3."""

import pytest

from hyperseg.training import load_recipe
from hyperseg.training.schedule import learning_rate

# lr * (1 - t / T) ** p at step 0, at half of the run, and before the last step.
TABLE = {
    "hyperseg-s-camvid": (1e-3, 2.5e-4, 1e-3 / 120_000**2),
    "hyperseg-l-camvid": (1e-3, 2.5e-4, 1e-3 / 15_000**2),
    "hyperseg-m-cityscapes": (1e-3, 1e-3 * 0.5**0.9, 1e-3 / 90_000**0.9),
    "hyperseg-s-cityscapes": (1e-3, 1e-3 * 0.5**0.9, 1e-3 / 90_000**0.9),
    "hyperseg-l-voc": (1e-4, 1.25e-5, 1e-4 / 160**3),
    "camvid-demo": (2e-3 / 50, 2e-3 * 0.5**0.9, 2e-3 / 3200**0.9),
    "folder": (1e-3 / 50, 1e-3 * 0.5**0.9, 1e-3 / 1000**0.9),
}


@pytest.mark.parametrize("name", TABLE)
def test_first_middle_and_last_step(name):
    config = load_recipe(name)
    found = [learning_rate(config, step) for step in (0, config.steps // 2, config.steps - 1)]
    assert found == pytest.approx(TABLE[name], rel=1e-9)


def test_an_epoch_has_one_rate():
    config = load_recipe("hyperseg-l-voc")  # 625 steps each
    rates = [learning_rate(config, step) for step in (0, 624, 625, 1249, 1250)]
    assert rates[0] == rates[1] > rates[2] == rates[3] > rates[4]
    assert rates[2] == pytest.approx(1e-4 * (159 / 160) ** 3)


def test_past_the_end_the_rate_is_zero():
    config = load_recipe("hyperseg-m-cityscapes")
    assert [learning_rate(config, config.steps + k) for k in (0, 1, 1000)] == [0, 0, 0]


def test_warm_up_is_linear():
    config = load_recipe("folder", ["schedule.warmup=4", "schedule.power=0"])
    rates = [learning_rate(config, step) for step in range(6)]
    assert rates == pytest.approx([0.00025, 0.0005, 0.00075, 0.001, 0.001, 0.001])
