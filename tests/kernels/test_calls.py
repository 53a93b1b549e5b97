"""Calls recorded on the meta device equal those of a network that computes: shapes, memory formats and settings."""

import pytest
import torch

import hyperseg
from hyperseg.ops import use_backend
from hyperseg.runtime.folding import FoldedNetwork
from tools.gate.calls import folded_calls


@pytest.mark.parametrize("network", ["hyperseg-m-cityscapes", "hyperseg-s-cityscapes"])
def test_recorded_calls_are_those_of_the_network(network: str):
    folded = FoldedNetwork(hyperseg.create_model(network), fuse=True, generate_ahead=True)
    frames = torch.zeros(1, 64, 128, 3, dtype=torch.uint8)
    with use_backend("reference"):
        real = folded_calls(folded, frames)
    recorded = folded_calls(folded.to("meta"), frames.to("meta"))
    assert [call.key for call in recorded] == [call.key for call in real]
