"""Settings of single norms (eps, momentum, statistics, affine), and training on maps with one value per channel."""

import copy

import pytest
import torch
from torch import nn

import hyperseg
from hyperseg import ops
from hyperseg.models import create_model
from hyperseg.models.norms import fold_affine
from tests.models.networks import KINDS, NAMES, images, network, relative_rms

S = "hyperseg-s-camvid"


def other_eps(norm):
    norm.eps = 0.3


def other_momentum(norm):
    norm.momentum = 0.7


def cumulative(norm):
    norm.momentum = None


def not_tracked(norm):
    norm.track_running_stats = False


def no_statistics(norm):
    norm.track_running_stats = False
    norm.running_mean = norm.running_var = norm.num_batches_tracked = None


def not_affine(norm):
    norm.weight = norm.bias = None


def no_bias(norm):
    norm.bias = None


SETTINGS = [other_eps, other_momentum, cumulative, not_tracked, no_statistics, not_affine, no_bias]
settings = pytest.mark.parametrize("setting", SETTINGS, ids=lambda function: function.__name__)


class Called(nn.BatchNorm2d):
    """Of another class with its own forward, so that the decoder neither fuses nor folds it. PyTorch does the rest."""

    def forward(self, x):
        return super().forward(x)


def level(halo, setting, which, norm):
    """Return an inverted residual in float64 of which one norm has another setting, its input and its weights."""
    decoder = network("hyperseg-l-voc" if halo == "neighbour" else S).decoder
    module = copy.deepcopy(decoder.levels[3]).double()
    for i, old in enumerate(module.norms):
        module.norms[i] = norm(old.num_features).double()
        module.norms[i].load_state_dict(old.state_dict())
    setting(module.norms[which])
    plan = module.level
    random = torch.Generator().manual_seed(0)
    skip = torch.randn(2, plan.skip_channels, 8, 12, generator=random, dtype=torch.float64)
    previous = torch.randn(2, plan.previous_channels, 4, 6, generator=random, dtype=torch.float64)
    weights = torch.randn(2, 2, 3, plan.parameters, generator=random, dtype=torch.float64)
    return module, (skip, previous, weights)


@settings
@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("halo", ["own", "neighbour"])
def test_one_norm_with_another_setting(halo, which, setting):
    """Training steps, then eval: as PyTorch's own norms."""
    ours, inputs = level(halo, setting, which, nn.BatchNorm2d)
    theirs, _ = level(halo, setting, which, Called)
    for training in (True, True, False):
        for module in (ours, theirs):
            module.train(training)
        torch.testing.assert_close(ours(*inputs), theirs(*inputs), rtol=1e-9, atol=1e-9)
    assert len(dict(ours.named_buffers())) == (6 if setting is no_statistics else 9)
    for (name, found), expected in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("setting", [None, other_momentum, not_tracked], ids=["default", "momentum", "not-tracked"])
def test_which_settings_keep_the_fused_operator(setting, monkeypatch):
    called = []
    fused = ops.patch_inverted_residual_batch_norm
    monkeypatch.setattr(ops, "patch_inverted_residual_batch_norm", lambda *a, **k: called.append(1) or fused(*a, **k))
    module, inputs = level("own", setting or (lambda norm: None), 1, nn.BatchNorm2d)
    module.train()(*inputs)
    assert called


@settings
def test_eval_folds_each_norm_by_its_own_settings(setting):
    """The folded decoder equals norms called one by one; without running statistics nothing is folded."""
    model = copy.deepcopy(network(S)).double()
    called = copy.deepcopy(model)
    for module, norm in ((model, nn.BatchNorm2d), (called, Called)):
        for each in module.decoder.levels:
            for i, old in enumerate(each.norms):
                each.norms[i] = norm(old.num_features).double().eval()
                each.norms[i].load_state_dict(old.state_dict())
            setting(each.norms[len(each.norms) - 1])
    x = images(64, 96).double()
    with torch.inference_mode():
        assert relative_rms(model(x), called(x)) < 1e-9


@pytest.mark.parametrize("setting", [other_eps, not_affine, no_bias], ids=lambda function: function.__name__)
@pytest.mark.parametrize(
    "part", ["encoder.trunk.bn1", "encoder.reduce.1.norm", "context.reduce.norm", "decoder.levels.3.norms.1"]
)
def test_engines(part, setting):
    model = copy.deepcopy(network(S))
    setting(model.get_submodule(part))
    frames = torch.randint(0, 256, (1, 32, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    engine = hyperseg.build_engine(model, size=(32, 64), device="cpu", check=False)
    with torch.inference_mode():
        assert relative_rms(engine.logits(frames), model(engine.normalise(frames))) < 1e-4


@pytest.mark.parametrize(
    "part", ["encoder.trunk.bn1", "encoder.trunk.blocks.3.1.bn2", "context.reduce.norm", "decoder.levels.3.norms.1"]
)
def test_an_engine_needs_running_statistics(part):
    model = copy.deepcopy(network(S))
    no_statistics(model.get_submodule(part))
    with pytest.raises(ValueError, match=rf"^{part} has no running statistics .* Train with track_running_stats=True"):
        hyperseg.build_engine(model, size=(32, 64), device="cpu")


def test_an_engine_of_a_decoder_with_other_norms():
    model = copy.deepcopy(network(S))
    model.decoder.levels[0].norms[0] = nn.GroupNorm(1, 64)
    with torch.inference_mode():
        assert model(images(32, 64)).isfinite().all()
    with pytest.raises(ValueError, match=r"^decoder\.levels\.0\.norms\.0 is GroupNorm.*, expected a batch norm"):
        hyperseg.build_engine(model, size=(32, 64), device="cpu")


def test_fold_affine():
    norm = nn.BatchNorm2d(4, affine=False).double().eval()
    norm.running_mean.uniform_()
    norm.running_var.uniform_(0.1, 1)
    scale, bias = fold_affine(norm)
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(x * scale[:, None, None] + bias[:, None, None], norm(x), rtol=1e-12, atol=1e-12)


# ---------------------------------------------------------------------------------------------------------------------
# One value per channel


def step(model, *shape):
    labels = torch.zeros(shape[0], *shape[2:], dtype=torch.int64)
    loss = ops.upsample_cross_entropy(model(torch.randn(shape)), labels)
    loss.backward()
    assert loss.isfinite()
    assert all(value.isfinite().all() for value in model.state_dict().values())


def needed(model, height, width):
    """Return the number of pixels that the message for one image of this size asks for; nothing may have changed."""
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(
        ValueError, match=rf"one image of {height}x{width} leaves .* batch of at least 2 images"
    ) as caught:
        model(torch.randn(1, 3, height, width))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    return int(str(caught.value).split()[-2])


@pytest.mark.parametrize("name", NAMES)
def test_small_crops(name):
    """The message is right: the next smaller size fails too, and what it asks for is enough."""
    model = create_model(name).train()
    side = needed(model, 32, 32)
    assert side == 32 * (2 ** (model.config.context_levels - 1) + 1)
    assert needed(model, side - 32, side - 32) == side
    assert needed(model, 33, 1) == side
    torch.manual_seed(0)
    step(model, 1, 3, side, 32)
    step(model, 2, 3, 32, 32)


@pytest.mark.parametrize("name", KINDS)
def test_small_crops_with_frozen_norms(name):
    """What is frozen asks for nothing; what is not asks for its own size."""
    model = copy.deepcopy(network(name)).train()
    model.context.eval()
    assert needed(model, 32, 32) == 64
    model.encoder.eval()
    assert needed(model, 32, 32) == 64, "the first level of the decoder"
    model.decoder.eval()
    step(model, 1, 3, 32, 32)


def test_small_crops_with_another_encoder():
    model = create_model(S, encoder="resnet18").train()
    assert needed(model, 64, 64) == 96
    model.context.eval()
    model.decoder.eval()
    model.encoder.trunk.head.eval()
    model.encoder.reduce.eval()
    with pytest.raises(ValueError, match=r"one image of 32x32|1 image of 32x32 leaves a batch norm of the encoder"):
        model(torch.randn(1, 3, 32, 32))


def test_a_map_of_one_pixel_never_reaches_the_fused_norms():
    """So the running variance is never multiplied by 1 / 0."""
    weights = torch.randn(1, 1, 1, 2 * 4 + 9 * 4 + 4 * 3)
    with pytest.raises(ValueError, match="the map is 1x1 pixels, too small"):
        ops.patch_inverted_residual_batch_norm(
            torch.randn(1, 2, 1, 1), weights, torch.ones(11), torch.zeros(11), hidden=4, out_channels=3
        )
