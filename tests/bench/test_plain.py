"""HyperSeg in plain PyTorch: equal to the module with norms and folded, another network without them."""

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode

from bench.core import plain
from bench.core.networks import inference, load


class OnlyPlain(TorchDispatchMode):
    """Refuses operators of ours."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert not func.namespace.startswith("hyperseg"), func
        return func(*args, **(kwargs or {}))


def norms(network):
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]


# Patches with halos of their own and of their neighbours, signals for one level and for several, the image as a map.
@pytest.mark.parametrize("name", ["hyperseg-m-cityscapes", "hyperseg-s-cityscapes", "hyperseg-l-voc"])
def test_it_matches_the_module(name):
    model, _ = load(name, None, 0)
    height, width = model.config.padded_size((64, 96))
    images = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(1))
    with inference("reference"):
        expected = model.forward_strided(images)
        official, folded, removed = plain.with_norms(model), plain.folded(model), plain.without_norms(model)
        for network in (official, folded, removed):
            with OnlyPlain():
                scores = network(images)
            assert scores.shape == expected.shape
            error = (scores - expected).norm() / expected.norm()
            assert error > 0.1 if network is removed else error < 1e-5
    assert len(norms(official)) == len(norms(model))
    assert norms(folded) == norms(removed) == []
    assert norms(model)  # the copies do not change it
