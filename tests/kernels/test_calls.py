"""The calls recorded without computing are those that a network makes: the same shapes, memory formats and settings."""

import pytest
import torch

import hyperseg
from hyperseg.ops import use_backend
from hyperseg.runtime.folding import FoldedNetwork
from tests.kernels.calls import folded_calls


@pytest.mark.parametrize("network", ["hyperseg-m-cityscapes", "hyperseg-s-cityscapes"])
def test_recorded_calls_are_those_of_the_network(network: str, monkeypatch):
    monkeypatch.setattr("hyperseg.models.decoder.has_costly_launches", lambda device: True)  # as on a GPU
    folded = FoldedNetwork(hyperseg.create_model(network), fuse=True)
    images = torch.zeros(1, 3, 64, 128)
    with use_backend("reference"):
        real = folded_calls(folded, images)
    recorded = folded_calls(folded.to("meta"), images.to("meta"))
    assert [call.key for call in recorded] == [call.key for call in real]
