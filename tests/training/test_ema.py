"""The averaged network: its formula, its buffers, and that it continues from a state."""

import copy

import pytest
import torch

from hyperseg.training.ema import AveragedNetwork
from tests.models.networks import network

NAME = "hyperseg-s-camvid"


@torch.no_grad()
def change(net, step):
    for value in net.state_dict().values():
        value.add_(step) if value.is_floating_point() else value.add_(1)


def test_averages_follow_the_formula():
    net = copy.deepcopy(network(NAME))
    key = "decoder.levels.0.norms.0.running_mean"
    average, expected = AveragedNetwork(net, decay=0.2), net.state_dict()[key].double().clone()
    for step in range(4):
        change(net, 1.0)
        average.update(net)
        decay = min(0.2, (1 + step) / (10 + step))  # .1, .18, .2, .2
        expected = decay * expected + (1 - decay) * net.state_dict()[key].double()
        torch.testing.assert_close(average.network.state_dict()[key].double(), expected, rtol=1e-6, atol=1e-6)
    counter = "decoder.levels.0.norms.0.num_batches_tracked"
    assert average.network.state_dict()[counter] == net.state_dict()[counter]
    assert not average.network.training


def test_it_continues_from_a_state():
    net = copy.deepcopy(network(NAME))
    one = AveragedNetwork(net, decay=0.99)
    for step in range(2):
        change(net, step)
        one.update(net)
    two = AveragedNetwork(net, decay=0.99)
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    change(net, 0.5)
    one.update(net)
    two.update(net)
    assert two.updates == 3
    found = two.network.state_dict()
    assert all(torch.equal(value, found[key]) for key, value in one.network.state_dict().items())


def test_a_value_beyond_float16_stays():
    net = copy.deepcopy(network(NAME))
    average = AveragedNetwork(net, decay=0.5)
    with torch.no_grad():
        net.decoder.generators[0][0, 0] = 70_000.0
    average.update(net)
    before = {key: value.clone() for key, value in average.network.state_dict().items()}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        average.network(torch.zeros(1, 3, 64, 64))
    assert average.network.decoder.generators[0][0, 0].item() == pytest.approx(70_000, rel=0.2)
    assert all(torch.equal(value, before[key]) for key, value in average.network.state_dict().items())
