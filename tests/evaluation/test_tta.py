"""Test-time augmentation over scales and flips: SPEC H.1."""

import pytest
import torch
from torch import nn

from hyperseg.evaluation import forward_pyramid


class Model(nn.Module):
    """Model that is not symmetric: its logits are the image plus the x coordinate."""

    def forward(self, x):
        return x + torch.linspace(0, 1, x.shape[3])


def resized(x, like):
    return nn.functional.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)


def test_a_single_image_with_flip():
    x = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    model = Model()
    expected = torch.maximum(model(x), model(x.flip(3)).flip(3))
    assert torch.equal(forward_pyramid(model, [x]), expected)
    assert torch.equal(forward_pyramid(model, [x], hflip=False), model(x))


@pytest.mark.parametrize("gather", ["mean", "max"])
def test_three_scales(gather):
    """``mean`` is a running half-average (SPEC H.1): 1/4, 1/4, 1/2."""
    generator = torch.Generator().manual_seed(0)
    x, y, z = (torch.randn(1, 3, s, s, generator=generator) for s in (6, 12, 3))
    a, b, c = x, resized(y, x), resized(z, x)
    found = forward_pyramid(nn.Identity(), [x, y, z], hflip=False, gather=gather)
    expected = a / 4 + b / 4 + c / 2 if gather == "mean" else torch.stack([a, b, c]).amax(0)
    torch.testing.assert_close(found, expected)


def test_bad_arguments():
    with pytest.raises(ValueError, match="at least one image"):
        forward_pyramid(nn.Identity(), [])
    with pytest.raises(ValueError, match="'median'"):
        forward_pyramid(nn.Identity(), [torch.zeros(1, 3, 2, 2)], gather="median")
