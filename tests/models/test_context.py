"""Context heads: SPEC C, and the parts of them that no generator reads."""

import copy

import pytest
import torch
import torch.nn.functional as F

from hyperseg.models.context import PyramidContext, UnetContext
from tests.models.networks import images, network

OVERLAPPING = ["hyperseg-s-camvid", "hyperseg-l-camvid", "hyperseg-m-cityscapes"]
READ = {"hyperseg-s-camvid": 448, "hyperseg-l-camvid": 384, "hyperseg-m-cityscapes": 416}


def randomise(*modules):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in modules:
            for tensor in [*module.parameters(), *module.buffers()]:
                if tensor.is_floating_point():
                    tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.1)


@pytest.mark.parametrize("name", OVERLAPPING)
def test_v1_0_does_not_read_the_context(name):
    """Other weights in the coarser resolutions leave the logits bitwise equal in eval mode."""
    model = copy.deepcopy(network(name))
    x = images(64, 128)
    with torch.inference_mode():
        before = model(x)
        randomise(model.context.down, model.context.up)
        assert (model(x) - before).abs().max().item() == 0.0
        signal = model.context(torch.ones(1, 1280, 2, 4), model.decoder.plan.used_channels)
        assert signal.shape[1] == 640, "inference skips the context"


@pytest.mark.parametrize("name", ["hyperseg-s-cityscapes", "hyperseg-l-voc"])
def test_other_networks_read_the_context(name):
    model = copy.deepcopy(network(name))
    x = images(64, 128)
    with torch.inference_mode():
        before = model(x)
        randomise(model.context.down)
        assert (model(x) - before).abs().max() > 1e-3


@pytest.mark.parametrize("name", OVERLAPPING[:1])
def test_gradients_of_the_unread_context(name):
    """They are exactly zero; the running statistics are updated nevertheless (SPEC C.1)."""
    model = copy.deepcopy(network(name)).train()
    before = model.context.down[0].norm.running_mean.clone()
    model(images(64, 128)).square().mean().backward()
    for parameter in [*model.context.down.parameters(), *model.context.up.parameters()]:
        assert parameter.grad is not None
        assert parameter.grad.abs().max().item() == 0.0
    rows = model.context.reduce.conv.weight.grad.abs().amax((1, 2, 3))
    assert rows[READ[name] :].max().item() == 0.0
    assert rows[: READ[name]].min() > 0
    assert not torch.equal(model.context.down[0].norm.running_mean, before)


def test_all_parameters_of_unify_have_gradients():
    model = copy.deepcopy(network("hyperseg-s-cityscapes")).train()
    # On a map larger than 2x2 no batch norm sees single values.
    model(images(128, 128)).square().mean().backward()
    for part in (model.context.down, model.context.up, model.context.reduce):
        assert part[0].conv.weight.grad.abs().max() > 0 if part is not model.context.reduce else True
        assert all(p.grad.abs().max() > 0 for p in part.parameters())


def test_pyramid():
    """SPEC C.1, step by step."""
    context = PyramidContext(8, 2).eval()
    randomise(context)
    x = torch.randn(1, 8, 4, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        a = context.reduce(x)
        d = context.down[0](a)
        g = d.mean((2, 3), keepdim=True).expand_as(d)
        u = F.interpolate(context.up[0](torch.cat([d, g], 1)), scale_factor=2)
        assert torch.equal(context(x), torch.cat([a, u], 1))
        assert torch.equal(context(x, 4), a)
        assert torch.equal(context(x, 5), context(x))


def test_unet():
    """SPEC C.2, step by step: no ReLU after the last convolution."""
    context = UnetContext(6, 3).eval()
    randomise(context)
    with torch.no_grad():
        context.flat[0].norm.bias.sub_(1000)
        x = torch.randn(1, 6, 8, 4, generator=torch.Generator().manual_seed(0))
        f1 = context.down[0](x)
        f2 = context.down[1](f1).mean((2, 3), keepdim=True)
        y = context.flat[1](torch.cat([f1, f2.expand_as(f1)], 1))
        z = context.flat[0](torch.cat([x, F.interpolate(y, scale_factor=2)], 1))
        torch.testing.assert_close(context(x), z)
        assert context(x).min() < 0 <= y.min()


@pytest.mark.parametrize("grid", [(1, 1), (2, 2), (3, 3), (1, 4), (5, 2), (3, 7)], ids=lambda g: f"{g[0]}x{g[1]}")
@pytest.mark.parametrize(
    ("kind", "levels"), [(PyramidContext, 2), (PyramidContext, 3), (UnetContext, 3)], ids=["v1_0", "deeper", "v0_1"]
)
def test_any_grid(kind, levels, grid):
    """Including grids on which the official code crashes (SPEC C.3)."""
    context = kind(8, levels).eval()
    randomise(context)
    x = torch.randn(2, 8, *grid, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        signal = context(x)
        assert signal.shape == x.shape
        assert signal.isfinite().all()
        torch.testing.assert_close(context(x[1:]), signal[1:])
