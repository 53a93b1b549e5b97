"""HyperSeg's operators, usable on their own. A plain file name is an operator; an underscore is machinery.

``hyperseg.ops.reference`` defines what the operators compute. Each call runs on the best backend that supports it;
``use_backend`` names one, and ``python -m hyperseg.info`` shows which backend is chosen here, and why not the others.
"""

from hyperseg.ops._registry import OPERATORS
from hyperseg.ops.backends import BACKENDS, BackendError, chosen, has_kernel, named_backend, use_backend
from hyperseg.ops.context_head import context_head
from hyperseg.ops.decoder_level import LevelArguments, decoder_level, decoder_level_argmax
from hyperseg.ops.generate_weights import generate_weights
from hyperseg.ops.mbconv import mbconv
from hyperseg.ops.mbconv_chain import EncoderBlock, mbconv_chain
from hyperseg.ops.normalise_frames import normalise_frames
from hyperseg.ops.patch_conv2d import patch_conv2d
from hyperseg.ops.patch_inverted_residual import patch_inverted_residual, patch_inverted_residual_batch_norm
from hyperseg.ops.pointwise_conv import pointwise_conv
from hyperseg.ops.stem import stem
from hyperseg.ops.upsample_argmax import upsample_argmax
from hyperseg.ops.upsample_cross_entropy import check_labels, upsample_cross_entropy

__all__ = [
    "BACKENDS",
    "OPERATORS",
    "BackendError",
    "EncoderBlock",
    "LevelArguments",
    "check_labels",
    "chosen",
    "context_head",
    "decoder_level",
    "decoder_level_argmax",
    "generate_weights",
    "has_kernel",
    "mbconv",
    "mbconv_chain",
    "named_backend",
    "normalise_frames",
    "patch_conv2d",
    "patch_inverted_residual",
    "patch_inverted_residual_batch_norm",
    "pointwise_conv",
    "stem",
    "upsample_argmax",
    "upsample_cross_entropy",
    "use_backend",
]
