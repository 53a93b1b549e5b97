"""Random weights and frames."""

import pytest
import torch

from hyperseg.models import create_model, probe_frames, synthesize_weights
from tests.models.networks import NAMES, images, network


def test_weights_depend_on_the_seed_alone():
    first, second, other = (
        synthesize_weights(create_model("hyperseg-s-camvid"), seed).state_dict() for seed in (0, 0, 1)
    )
    assert all(torch.equal(first[key], value) for key, value in second.items())
    assert not torch.equal(first["decoder.generators.0"], other["decoder.generators.0"])


@pytest.mark.parametrize("name", NAMES)
def test_outputs_have_the_scale_of_logits_and_vary(name):
    with torch.inference_mode():
        logits = network(name)(images(96, 128))
    assert 0.1 < logits.std().item() < 10
    assert logits.argmax(1).unique().numel() > 1


@pytest.mark.parametrize("size", [(1, 1), (33, 57), (64, 300)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_frames(size):
    frames = probe_frames(2, size)
    assert (frames.dtype, tuple(frames.shape)) == (torch.uint8, (2, *size, 3))
    assert frames.is_contiguous()
    assert torch.equal(frames, probe_frames(2, size))
    assert not torch.equal(frames, probe_frames(2, size, seed=1))
    assert not torch.equal(frames[0], frames[1])
