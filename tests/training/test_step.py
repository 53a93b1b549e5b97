"""Optimisers: groups and rates, and that a restored one continues as one that was never saved."""

import copy
import math

import pytest
import torch

from hyperseg._processes import Processes
from hyperseg.models import HyperSeg
from hyperseg.training.config import LossConfig, OptimizerConfig, SpeedConfig
from hyperseg.training.losses import Objective
from hyperseg.training.network import Strided
from hyperseg.training.step import Stepper, build_optimizer, restore_optimizer
from tests.training.runs import TINY, differences


def network():
    torch.manual_seed(0)
    return HyperSeg(TINY)


def fill_gradients(net, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        parameter.grad = torch.empty_like(parameter).copy_(torch.randn(parameter.shape, generator=generator))


def test_groups():
    net = network()
    config = OptimizerConfig(name="adamw", lr=0.1, weight_decay=0.01, encoder_lr=0.25)
    groups = build_optimizer(net, config).param_groups
    found = {(g["factor"], g["weight_decay"]): {id(p) for p in g["params"]} for g in groups}
    assert set(found) == {(0.25, 0.01), (0.25, 0.0), (1.0, 0.01), (1.0, 0.0)}
    assert id(net.encoder.trunk.net.conv_stem.weight) in found[0.25, 0.01]
    assert id(net.encoder.trunk.head.norm.weight) in found[0.25, 0.0]
    assert id(net.decoder.generators[0]) in found[1.0, 0.01]
    assert id(net.decoder.levels[0].norms[0].weight) in found[1.0, 0.0]
    assert sum(len(ids) for ids in found.values()) == len(list(net.parameters()))


def test_the_published_optimiser_has_one_group():
    assert len(build_optimizer(network(), OptimizerConfig()).param_groups) == 1


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("formats", [(False, False), (True, False), (False, True)], ids=["same", "to", "from"])
def test_a_restored_optimiser_continues(name, formats, tmp_path):
    """Also if parameters are in channels-last memory and the state was not, or the other way round."""
    config = OptimizerConfig(name=name, lr=0.01, weight_decay=0.1)
    nets = [network().to(memory_format=torch.channels_last if last else torch.contiguous_format) for last in formats]
    saved = build_optimizer(nets[0], config)
    fill_gradients(nets[0], 1)
    saved.step()
    torch.save(saved.state_dict(), tmp_path / "state.pt")
    nets[1].load_state_dict(nets[0].state_dict())
    restored = build_optimizer(nets[1], config)
    restore_optimizer(restored, torch.load(tmp_path / "state.pt", weights_only=True))
    for net, optimizer in zip(nets, (saved, restored), strict=True):
        fill_gradients(net, 2)
        optimizer.step()
    for one, two in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(two, one, rtol=1e-6, atol=1e-7)
        for value in restored.state[two].values():
            assert value is None or value.dim() == 0 or value.stride() == two.stride()


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_updates_are_those_of_pytorchs_loop(name):
    """Of the implementation that is not fused."""
    net = network()
    other = copy.deepcopy(net)
    config = OptimizerConfig(name=name, lr=0.01, betas=(0.5, 0.999))
    kinds = {
        "adam": lambda ps: torch.optim.Adam(ps, lr=0.01, betas=(0.5, 0.999), foreach=False),
        "adamw": lambda ps: torch.optim.AdamW(ps, lr=0.01, betas=(0.5, 0.999), weight_decay=0, foreach=False),
        "sgd": lambda ps: torch.optim.SGD(ps, lr=0.01, momentum=0.9, foreach=False),
    }
    pairs = [(net, build_optimizer(net, config)), (other, kinds[name](other.parameters()))]
    for seed in (1, 2):
        for each, optimizer in pairs:
            fill_gradients(each, seed)
            optimizer.step()
    for one, two in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


def test_with_loss_scaling_an_overflow_skips_the_update_and_halves_the_scale():
    """The scaler of float16, here with float32 on the CPU; unscaled, the gradients are those without it."""
    runs = []
    for scaled in (False, True):
        net = network().train()
        optimizer = build_optimizer(net, OptimizerConfig(lr=0.01))
        objective = Objective(LossConfig(), steps=10, class_weights=None)
        speed = SpeedConfig(channels_last=False)
        stepper = Stepper(Strided(net), optimizer, objective, speed, 1.0, Processes(), torch.device("cpu"))
        stepper.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
        runs.append((net, stepper))
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 64, 64, generator=generator)
    labels = torch.randint(0, 12, (2, 64, 64), generator=generator).to(torch.uint8)
    norms = []
    for _, stepper in runs:
        torch.manual_seed(0)
        norms.append(stepper(images, labels, 0, 0.01)[1].item())
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)
    net, stepper = runs[1]
    before = copy.deepcopy([net.state_dict(), stepper.optimizer.state_dict()["state"]])
    hook = net.decoder.generators[0].register_hook(lambda gradient: gradient * math.inf)
    loss, norm, _ = stepper(images, labels, 1, 0.01).tolist()
    hook.remove()
    assert math.isfinite(loss)
    assert not math.isfinite(norm)
    assert stepper.scaler.get_scale() == 512
    assert all(torch.equal(value, before[0][name]) for name, value in net.named_parameters())
    assert differences(stepper.optimizer.state_dict()["state"], before[1]) == []
    stepper(images, labels, 2, 0.01)
    assert not torch.equal(net.decoder.generators[0], before[0]["decoder.generators.0"])
