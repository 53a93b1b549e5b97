"""Random weights and frames with the statistics of real ones, for tests, benchmarks and trying a pipeline."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from hyperseg.models.hyperseg import HyperSeg
from hyperseg.ops._layout import resize_logits

_GAIN = 1.4  # compensates about what ReLU-like activations take away
# Lower for generators, because features times generated weights grow from level to level. With a much lower gain they
# fade until every pixel has the same class.
_GENERATOR_GAIN = 0.8


@torch.no_grad()
def synthesize_weights(model: HyperSeg, seed: int = 0) -> HyperSeg:
    """Fill a network with seeded random weights and batch statistics of the scale that trained ones have.

    Its outputs mean nothing, but numerically they resemble a trained network's. With freshly initialised weights and
    statistics (mean 0, variance 1) the logits fade to zero, and any two implementations would agree on them.

    Returns:
        The model, changed in place.
    """
    random = torch.Generator("cpu").manual_seed(seed)

    def values(like: Tensor, scale: float) -> Tensor:
        uniform = torch.rand(like.shape, generator=random, dtype=torch.float32, device="cpu") - 0.5
        return (uniform * (scale * math.sqrt(12))).to(like.device, like.dtype)

    generators = set(model.decoder.generators)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            gain = _GENERATOR_GAIN if parameter in generators else _GAIN
            parameter.copy_(values(parameter, gain / math.sqrt(parameter[0].numel())))
            if parameter.dim() == 4 and parameter.shape[1] > 1:
                # Filters with zero mean ignore a constant offset, as trained ones before batch norms nearly do.
                # Otherwise an offset grows from block to block until float32 does not determine the logits.
                parameter.sub_(parameter.mean((1, 2, 3), keepdim=True))
        else:
            parameter.copy_(values(parameter, 0.1))
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            weight, mean, variance = module.weight, module.running_mean, module.running_var
            assert mean is not None
            assert variance is not None
            weight.add_(1)
            mean.copy_(values(mean, 0.1))
            variance.copy_(values(variance, 0.2).exp())
    return model


def probe_frames(batch: int, size: tuple[int, int], seed: int = 0) -> Tensor:
    """Return smooth random uint8 frames ``[N, H, W, 3]`` with structure at all scales, as camera images have."""
    generator = torch.Generator("cpu").manual_seed(seed)
    height, width = size
    # Whatever PyTorch's default dtype and device are.
    kind: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
    image = torch.zeros(batch, 3, height, width, **kind)
    for cell in (256, 64, 16, 4):
        coarse = torch.rand(batch, 3, -(-height // cell) + 1, -(-width // cell) + 1, generator=generator, **kind) - 0.5
        image += resize_logits(coarse, height, width) * (cell / 256) ** 0.5
    image = 127.5 + 127.5 * image / image.abs().amax((1, 2, 3), keepdim=True)
    return image.permute(0, 2, 3, 1).round().to(torch.uint8).contiguous()
