"""The decoder's plan, level shapes and signal channels, of a configuration: SPEC D and F."""

import contextlib
import copy
import functools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hyperseg.models import create_model, model_config
from hyperseg.models.decoder import Decoder, FoldedDecoder, skip_features
from hyperseg.models.plan import decoder_plan, divide_signal
from hyperseg.ops import generate_weights
from tests.models.networks import NAMES, images, network

# SPEC F, coarse to fine: in, out, hidden (0: a 1x1 level).
LEVELS = {
    "hyperseg-s-camvid": [(82, 64, 0), (94, 32, 0), (44, 16, 0), (24, 16, 48), (22, 12, 44)],
    "hyperseg-l-camvid": [(82, 64, 0), (94, 32, 0), (44, 16, 0), (24, 16, 48), (22, 16, 44), (21, 12, 42)],
    "hyperseg-m-cityscapes": [(82, 64, 0), (94, 32, 0), (44, 16, 0), (24, 16, 48), (34, 19, 68)],
    "hyperseg-s-cityscapes": [(130, 32, 0), (62, 16, 0), (26, 8, 0), (14, 8, 28), (26, 19, 52)],
    "hyperseg-l-voc": [(98, 96, 0), (132, 34, 0), (48, 12, 96), (22, 8, 44), (16, 6, 32), (11, 21, 22)],
}

# SPEC D.6: parameters, signal channels, their range, groups, rows.
GENERATORS = {
    "hyperseg-s-camvid": [
        (5248, 448, (0, 448), 64, 5248),
        (3008, 256, (0, 256), 32, 3008),
        (704, 256, (0, 256), 32, 704),
        (2352, 192, (0, 192), 16, 2352),
        (1892, 128, (0, 128), 8, 1896),
    ],
    "hyperseg-l-camvid": [
        (5248, 384, (0, 384), 64, 5248),
        (3008, 192, (0, 192), 32, 3008),
        (704, 256, (0, 256), 32, 704),
        (2352, 192, (0, 192), 16, 2352),
        (2068, 128, (0, 128), 8, 2072),
        (1764, 128, (0, 128), 8, 1768),
    ],
    "hyperseg-m-cityscapes": [
        (5248, 416, (0, 416), 32, 5248),
        (3008, 224, (0, 224), 16, 3008),
        (704, 128, (0, 128), 8, 704),
        (2352, 192, (0, 192), 16, 2352),
        (4216, 320, (0, 320), 4, 4216),
    ],
    "hyperseg-s-cityscapes": [
        (4160, 576, (0, 576), 32, 4160),
        (992, 128, (576, 704), 16, 992),
        (208, 64, (704, 768), 8, 208),
        (3676, 512, (768, 1280), 16, 3680),
    ],
    "hyperseg-l-voc": [
        (9408, 592, (0, 592), 16, 9408),
        (4488, 272, (592, 864), 16, 4496),
        (6624, 416, (864, 1280), 16, 6624),
        (1716, 96, (1280, 1376), 16, 1728),
        (992, 48, (1376, 1424), 16, 992),
        (902, 112, (1424, 1536), 16, 912),
    ],
}
USED = {
    "hyperseg-s-camvid": (448, 1280),
    "hyperseg-l-camvid": (384, 1280),
    "hyperseg-m-cityscapes": (416, 1280),
    "hyperseg-s-cityscapes": (1280, 1280),
    "hyperseg-l-voc": (1536, 1536),
}


@pytest.mark.parametrize("name", NAMES)
def test_levels(name):
    plan = decoder_plan(model_config(name))
    assert [(level.in_channels, level.out_channels, level.hidden) for level in plan.levels] == LEVELS[name]


@pytest.mark.parametrize("name", NAMES)
def test_generators(name):
    plan = decoder_plan(model_config(name))
    found = [(g.size, g.channels, (g.offset, g.offset + g.channels), g.groups, g.rows) for g in plan.generators]
    assert found == GENERATORS[name]
    assert (plan.used_channels, plan.signal_channels) == USED[name]


@pytest.mark.parametrize("name", NAMES)
def test_generators_are_in_the_order_of_the_levels(name):
    plan = decoder_plan(model_config(name))
    assert [i for g in plan.generators for i in g.levels] == list(range(len(plan.levels)))
    assert [g.size for g in plan.generators] == [
        sum(plan.levels[i].parameters for i in g.levels) for g in plan.generators
    ]


def test_unify_merges_its_two_finest_levels():
    plan = decoder_plan(model_config("hyperseg-s-cityscapes"))
    assert [g.levels for g in plan.generators] == [(0,), (1,), (2,), (3, 4)]
    assert [plan.levels[i].parameters for i in (3, 4)] == [868, 2808]


def test_the_merged_vector_holds_the_coarser_level_first():
    """SPEC E: level 3 in [0, 868), level 4 in [868, 3676), then four unused rows."""
    model = copy.deepcopy(network("hyperseg-s-cityscapes"))
    x = images(64, 128)
    merged = model.decoder.generators[3]
    with torch.no_grad():
        before, full = model(x), merged.clone()
        merged[3676:] = 1e6
        assert torch.equal(model(x), before)
        merged[868:3676] = 0
        constant = model.forward_strided(x)
        merged.copy_(full)[:868] = 0
        varying = model.forward_strided(x)
    # Without weights level 4 returns its bias everywhere; level 3 alone leaves the skip features to level 4.
    assert torch.equal(constant, constant[:, :, :1, :1].expand_as(constant))
    assert varying.std((2, 3)).min() > 0
    assert not torch.equal(varying, before)


# The remainder algorithm (D.1) starts each generator with one unit, so it succeeds if there are that many units.
shares = st.tuples(
    st.lists(st.tuples(st.sampled_from([1, 2, 4, 8, 16, 32]), st.integers(1, 10000)), min_size=1, max_size=6),
    st.integers(0, 60),
    st.booleans(),
)


# No limits on wall-clock time, which a busy machine exceeds.
on_any_machine = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def divided(case, division):
    """Draw ``(unit, channels, groups, sizes)``; half the cases have generators of equal size."""
    pairs, spare, repeat = case
    pairs = [(groups, pairs[0][1] if repeat and i % 2 else size) for i, (groups, size) in enumerate(pairs)]
    groups, sizes = [g for g, _ in pairs], [n for _, n in pairs]
    unit = max(8, *groups) if division == "legacy" else max(groups)
    return unit, unit * (len(groups) + spare), groups, sizes


def check_widths(widths, unit, channels, sizes):
    assert all(width > 0 and width % unit == 0 for width in widths)
    by_size = dict(zip(sizes, widths, strict=True))
    assert [by_size[size] for size in sizes] == widths, "generators of equal size have the same number of channels"
    # Channels that m generators of equal size cannot divide equally are left over.
    assert channels - max(sizes.count(n) - 1 for n in sizes) * unit <= sum(widths) <= channels


@on_any_machine
@given(shares)
def test_division_by_remainder(case):
    unit, channels, groups, sizes = divided(case, "remainder")
    check_widths(divide_signal(channels, groups, sizes, "remainder"), unit, channels, sizes)


@on_any_machine
@given(shares)
def test_division_of_v0_1(case):
    unit, channels, groups, sizes = divided(case, "legacy")
    sizes = [-(-n // g) * g for g, n in zip(groups, sizes, strict=True)]
    # D.3 may leave no channels for the smallest generators: then it raises.
    with contextlib.suppress(ValueError):
        check_widths(divide_signal(channels, groups, sizes, "legacy"), unit, channels, sizes)


@pytest.mark.parametrize(
    ("groups", "sizes"),
    [
        pytest.param([64, 32, 32, 16, 8], [5248, 3008, 704, 2352, 1892], id="camvid-s"),
        pytest.param([32, 16, 8, 16, 4], [5248, 3008, 704, 2352, 4216], id="city-m"),
    ],
)
def test_division_does_not_change_the_callers_lists(groups, sizes):
    """The official code empties them (SPEC D.7)."""
    given_groups, given_sizes = list(groups), list(sizes)
    first = divide_signal(1280, groups, sizes, "remainder")
    assert (groups, sizes) == (given_groups, given_sizes)
    assert divide_signal(1280, groups, sizes, "remainder") == first


@pytest.mark.parametrize(
    ("channels", "groups", "division", "message"),
    [
        pytest.param(1280, [48, 16], "remainder", "1280 channels does not divide into units of 48", id="unit"),
        pytest.param(1284, [4, 2], "legacy", "does not divide into units of 8", id="legacy-unit"),
        pytest.param(64, [64, 16], "remainder", "64 signal channels in units of 64 are too few", id="too-few"),
        pytest.param(16, [16, 16], "legacy", "too few for 2 generators", id="legacy-too-few"),
    ],
)
def test_impossible_divisions(channels, groups, division, message):
    with pytest.raises(ValueError, match=message):
        divide_signal(channels, groups, [1000, 10], division)


@pytest.mark.parametrize("name", NAMES)
def test_as_many_weight_groups_as_generators(name):
    config = model_config(name)
    with pytest.raises(ValueError, match="weight generators need as many weight_groups"):
        decoder_plan(config.replace(weight_groups=config.weight_groups[:-1]))


@functools.cache
def decoder_inputs(name):
    x = images(64, 64)
    with torch.inference_mode():
        features, head = network(name).encoder(x)
        return network(name).context(head), features, x


@pytest.mark.parametrize("classes", [1, 2, 3, 33, 150])
@pytest.mark.parametrize("name", NAMES)
def test_other_numbers_of_classes(name, classes):
    config = model_config(name).replace(num_classes=classes)
    plan = decoder_plan(config)
    assert [level.out_channels for level in plan.levels] == [*(out for _, out, _ in LEVELS[name][:-1]), classes]
    for spec in plan.generators:
        assert 0 <= spec.rows - spec.size < spec.groups
        assert spec.rows % spec.groups == spec.channels % spec.groups == 0
        assert spec.offset + spec.channels <= plan.signal_channels
    decoder = Decoder(plan, config.halo).eval()
    with torch.inference_mode():
        logits = decoder(*decoder_inputs(name))
    stride = network(name).output_stride
    assert logits.shape == (1, classes, 64 // stride, 64 // stride)
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_a_network_of_seven_classes(name):
    model = create_model(name, num_classes=7).eval()
    assert (model.config.num_classes, model.config.dataset, model.config.name) == (7, "custom", name)
    with torch.inference_mode():
        assert model(images(64, 96)).shape == (1, 7, 64, 96)


@pytest.mark.parametrize("name", NAMES)
def test_weights_generated_in_one_launch_equal_those_of_the_levels(name):
    plan = decoder_plan(model_config(name))
    signal = torch.randn(2, plan.used_channels, 2, 3)
    generators = [torch.randn(g.rows, g.channels // g.groups) for g in plan.generators]
    ahead = FoldedDecoder(plan, "own", generators, biases=[], generate_ahead=True).weights_ahead(signal)
    shared = {i for g in plan.generators if len(g.levels) > 1 for i in g.levels}
    assert set(ahead) == {i for i, level in enumerate(plan.levels) if level.hidden} | shared
    for spec, generator in zip(plan.generators, generators, strict=True):
        if spec.levels[0] in ahead:
            own = generate_weights(signal, generator, offsets=spec.offset, groups=spec.groups, sizes=spec.size)
            torch.testing.assert_close(torch.cat([ahead[i] for i in spec.levels], -1), own)


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_the_same_with_weights_generated_in_one_launch(name):
    model, x = network(name), images(64, 96)
    with torch.inference_mode():
        features, head = model.encoder(x)
        signal = model.context(head, model.decoder.plan.used_channels)
        skips = skip_features(features, x)[: len(model.decoder.levels)]
        found = model.decoder.fold(generate_ahead=True).decode(signal, skips)
        torch.testing.assert_close(found, model.forward_strided(x), rtol=1e-4, atol=1e-4)
