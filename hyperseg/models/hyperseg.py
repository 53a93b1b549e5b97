"""The network, from images to logits."""

import torch
from torch import Tensor, nn

from hyperseg.models.config import HyperSegConfig
from hyperseg.models.context import CONTEXTS
from hyperseg.models.decoder import Decoder
from hyperseg.models.encoder import Encoder, Weights
from hyperseg.models.norms import needs_several_values
from hyperseg.models.plan import decoder_plan
from hyperseg.models.sizes import pad
from hyperseg.ops._layout import resize_logits


class HyperSeg(nn.Module):
    """HyperSeg (CVPR 2021): encoder, context head, and a decoder whose convolution weights are generated per patch.

    Args:
        config: the configuration.
        encoder_weights: state dict of timm's whole model with pretrained weights for the encoder; see
            :func:`create_model`, which finds them. The rest of the network keeps PyTorch's initialisation then, as in
            the official training. Without them all convolutions are Xavier-normal (SPEC A.3).

    Attributes:
        config: the configuration.
        output_stride: stride of the last level's logits: 2, or 1 for networks with six levels.
    """

    @torch.inference_mode(False)  # parameters made in inference mode could never be trained
    def __init__(self, config: HyperSegConfig, encoder_weights: Weights | None = None):
        super().__init__()
        self.config = config
        plan = decoder_plan(config)
        self.encoder = Encoder(config, encoder_weights)
        self.context = CONTEXTS[config.context](config.head_channels, config.context_levels)
        self.decoder = Decoder(plan, config.halo)
        self.output_stride = 2 ** (6 - len(plan.levels))
        if encoder_weights is None:
            self._xavier()

    def _xavier(self) -> None:
        """Initialise as the official training does without ImageNet weights (SPEC A.3)."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_normal_(module.weight)
        for generator in self.decoder.generators:
            nn.init.xavier_normal_(generator)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits at image size.

        Args:
            images: ``[N, 3, H, W]``, floating point, normalised with ``config.mean`` and ``config.std``; any H and W:
                other sizes than :meth:`HyperSegConfig.padded_size` returns are padded by repeating the last row and
                column, and the logits are cropped.

        Returns:
            ``[N, num_classes, H, W]``.

        Raises:
            ValueError: images have another shape; or in training, batch norms would see one value per channel: the
                message says which size or batch is enough.
            TypeError: images are not floating point.
        """
        logits = self.forward_strided(images)
        height, width = images.shape[-2:]
        return resize_logits(logits, *self.config.padded_size((height, width)))[:, :, :height, :width]

    def forward_strided(self, images: Tensor) -> Tensor:
        """Return the last level's logits: of the padded image, at ``output_stride``."""
        _check_images(images)
        height, width = images.shape[-2:]
        self._check_statistics(len(images), (height, width))
        images = pad(images, self.config.padded_size((height, width)))
        features, head = self.encoder(images)
        used = None if self.training else self.decoder.plan.used_channels
        return self.decoder(self.context(head, used), features, images)

    def _check_statistics(self, batch: int, size: tuple[int, int]) -> None:
        """Refuse a training step, before anything changes, on maps with one value per channel: it has no variance."""
        largest = max(self.config.padded_size(size)) // 32
        if batch > 1 or largest > 2 ** (self.config.context_levels - 1):
            return
        # From the coarsest maps to finer ones: what is enough for these is enough for all.
        parts = [*self.context.parts(), *((0, m) for m in [*self.encoder.coarsest(), self.decoder.levels[0]])]
        for depth, module in sorted(parts, key=lambda part: -part[0]):
            scale = 2**depth
            if largest <= scale and needs_several_values(module):
                raise ValueError(
                    f"Training on one image of {size[0]}x{size[1]} leaves batch norms one value per channel, on maps "
                    f"of stride {32 * scale}. Use a batch of at least 2 images, or images of which one side has at "
                    f"least {32 * (scale + 1)} pixels."
                )


def _check_images(images: Tensor) -> None:
    if images.dim() != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise ValueError(f"Images must be [N, 3, H, W], got {list(images.shape)}.")
    if not torch.is_floating_point(images):
        raise TypeError(
            f"Images must be floating point, normalised with the model's mean and std, got {images.dtype}; "
            "hyperseg.build_engine takes uint8 frames."
        )
