"""16-bit floats on the CPU."""

import copy

import pytest
import torch

from hyperseg.runtime.parity import TOLERANCES
from tests.models.networks import NAMES, images, network, relative_rms


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_16_bit_floats_are_near_float32(name, dtype):
    x = images(64, 96)
    with torch.inference_mode():
        expected = network(name)(x)
        logits = copy.deepcopy(network(name)).to(dtype)(x.to(dtype))
    assert logits.dtype == dtype
    assert logits.isfinite().all()
    assert 0 < relative_rms(logits, expected) < TOLERANCES[dtype].relative_rms


@pytest.mark.parametrize("name", NAMES)
def test_float32_is_near_float64(name):
    """So near that the other tests can compare in float32."""
    x = images(64, 96)
    with torch.inference_mode():
        exact = copy.deepcopy(network(name)).double()(x.double())
        assert exact.dtype == torch.float64
        assert 0 < relative_rms(network(name)(x), exact) < 1e-4
        # The logits are also far from constant.
        assert exact.std((2, 3)).min() > 1e-2


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize("name", ["hyperseg-l-camvid", "hyperseg-s-cityscapes", "hyperseg-l-voc"])
def test_autocast(name, training):
    model = copy.deepcopy(network(name))
    model.decoder.train(training)
    x = images(64, 128, batch=2)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(x)
    assert logits.dtype == torch.bfloat16
    logits.float().square().mean().backward()
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert all(p.grad.isfinite().all() for p in model.decoder.parameters())
    # Batch statistics of so few pixels amplify rounding.
    assert 0 < relative_rms(logits, model(x)) < 3 * TOLERANCES[torch.bfloat16].relative_rms
