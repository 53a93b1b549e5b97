"""Networks in training mode, with batch norms that use batch statistics, are frozen or of another class."""

import copy

import pytest
import torch
from torch import nn

from hyperseg import ops
from hyperseg.models import create_model, model_config
from hyperseg.models.decoder import Decoder
from hyperseg.models.plan import decoder_plan
from tests.models.networks import KINDS, images, network

kinds = pytest.mark.parametrize("name", KINDS)


class OtherBatchNorm(nn.BatchNorm2d):
    """Of another class with its own forward: the decoder calls it, and neither fuses nor folds it."""

    def forward(self, x):
        return super().forward(x)


def decoder(name, norm=nn.BatchNorm2d):
    """Return a small float64 decoder in training mode, and its signal, features and images."""
    config = model_config(name)
    torch.manual_seed(0)
    module = Decoder(decoder_plan(config), config.halo)
    features = [torch.randn(2, c, 64 >> i, 64 >> i) for i, c in enumerate(config.feature_channels, start=1)]
    with torch.no_grad():
        for generator in module.generators:
            generator.normal_(std=generator.shape[1] ** -0.5)
        for level in module.levels:
            for plain in level.norms:
                plain.weight.uniform_(0.8, 1.2)
                plain.bias.uniform_(-0.2, 0.2)
                plain.running_mean.uniform_(-0.2, 0.2)
                plain.running_var.uniform_(0.5, 2)
    for level in module.levels:
        for i, plain in enumerate(level.norms):
            if norm is not nn.BatchNorm2d:
                level.norms[i] = norm(plain.num_features)
                level.norms[i].load_state_dict(plain.state_dict())
    signal, image = torch.randn(2, config.head_channels, 2, 2) * 0.3, torch.randn(2, 3, 64, 64)
    return module.double(), (signal.double(), [f.double() for f in features], image.double())


def gradients(module, logits):
    weights = torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits)
    (logits * weights).sum().backward()
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def assert_equal(actual, expected):
    assert set(actual) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-8, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


@kinds
def test_a_step_lowers_the_loss_as_the_gradient_predicts(name):
    torch.manual_seed(0)
    model = create_model(name, drop_path_rate=0.0, head_dropout=0.0).train()
    x = images(128, 128, batch=2)
    labels = x[:, 0].gt(0).long() + 2 * x[:, 1].gt(0).long()
    labels[:, :4] = 255
    loss = ops.upsample_cross_entropy(model(x), labels)
    loss.backward()
    gradients = [p.grad for p in model.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    # To first order, a step of s against a gradient of norm g lowers the loss by s g^2.
    step = 0.01 / sum(gradient.double().square().sum().item() for gradient in gradients)
    torch.optim.SGD(model.parameters(), lr=step).step()
    with torch.no_grad():
        lowered = loss - ops.upsample_cross_entropy(model(x), labels)
    assert lowered.item() == pytest.approx(0.01, rel=0.2)


@kinds
def test_running_statistics_follow_the_batch(name):
    model = copy.deepcopy(network(name)).train()
    before = {key: value.clone() for key, value in model.named_buffers()}
    with torch.no_grad():
        model(images(64, 128, batch=2))
    norms = {key: m for key, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert all(norm.num_batches_tracked == 1 for norm in norms.values())
    still = [key for key, norm in norms.items() if torch.equal(norm.running_mean, before[f"{key}.running_mean"])]
    assert still == []
    still = [key for key, norm in norms.items() if torch.equal(norm.running_var, before[f"{key}.running_var"])]
    assert still == []


@kinds
def test_eval_changes_nothing(name):
    before = {key: value.clone() for key, value in network(name).state_dict().items()}
    with torch.no_grad():
        network(name)(images(64, 64))
    assert all(torch.equal(value, before[key]) for key, value in network(name).state_dict().items())


def norm_by_norm(module, signal, features, image):
    """Run the decoder without folding: each level generates its weights and calls its norms."""
    skips, x = [*reversed(features), image], None
    for spec, generator in zip(module.plan.generators, module.generators, strict=True):
        weights = ops.generate_weights(signal, generator, offsets=spec.offset, groups=spec.groups, sizes=spec.size)
        sizes = [module.plan.levels[i].parameters for i in spec.levels]
        for i, part in zip(spec.levels, weights.split(sizes, -1), strict=True):
            x = module.levels[i](skips[i], x, part)
    return x


@kinds
def test_frozen_norms(name):
    """They are folded into the generators; values and gradients equal those with separate norms."""
    module, inputs = decoder(name)
    module.train()
    for level in module.levels:
        level.norms.eval()
    before = {key: value.clone() for key, value in module.named_buffers()}
    logits = module(*inputs)
    found = gradients(module, logits)
    assert set(found) == {key for key, _ in module.named_parameters()}
    module.zero_grad()
    expected = norm_by_norm(module, *inputs)
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)
    assert_equal(found, gradients(module, expected))
    assert all(torch.equal(value, before[key]) for key, value in module.named_buffers())


@kinds
def test_one_frozen_level_among_others(name):
    module, inputs = decoder(name)
    other, _ = decoder(name, OtherBatchNorm)
    for each in (module, other):
        each.levels[-1].norms.eval()
    before = {key: value.clone() for key, value in module.named_buffers()}
    logits, expected = module(*inputs), other(*inputs)
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)
    assert_equal(gradients(module, logits), gradients(other, expected))
    last = f"levels.{len(module.levels) - 1}."
    unchanged = {key for key, value in module.named_buffers() if torch.equal(value, before[key])}
    assert unchanged == {key for key in before if key.startswith(last)}


@kinds
def test_a_subclass_of_batch_norm(name):
    """Logits, gradients and running statistics equal those of the fused operator."""
    plain, inputs = decoder(name)
    other, _ = decoder(name, OtherBatchNorm)
    logits, expected = plain(*inputs), other(*inputs)
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)
    assert_equal(gradients(plain, logits), gradients(other, expected))
    assert_equal(dict(plain.named_buffers()), dict(other.named_buffers()))
