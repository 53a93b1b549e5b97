"""HyperSeg's operators, usable on their own; each chooses among the backends that can serve a call.

``hyperseg.ops.reference`` defines what they compute, ``use_backend`` names a backend, ``python -m hyperseg.info`` tells
which would be chosen here.
"""

from hyperseg.ops import native, triton
from hyperseg.ops.backends import BACKENDS, BackendError, use_backend
from hyperseg.ops.decoder_level import decoder_level
from hyperseg.ops.decoder_level_argmax import decoder_level_argmax
from hyperseg.ops.generate_weights import generate_weights
from hyperseg.ops.mbconv import mbconv
from hyperseg.ops.patch_conv2d import patch_conv2d
from hyperseg.ops.patch_inverted_residual import patch_inverted_residual, patch_inverted_residual_batch_norm
from hyperseg.ops.registration import OPERATORS
from hyperseg.ops.stem import stem
from hyperseg.ops.upsample_argmax import upsample_argmax
from hyperseg.ops.upsample_cross_entropy import upsample_cross_entropy

__all__ = [
    "BACKENDS",
    "OPERATORS",
    "BackendError",
    "decoder_level",
    "decoder_level_argmax",
    "generate_weights",
    "mbconv",
    "native",
    "patch_conv2d",
    "patch_inverted_residual",
    "patch_inverted_residual_batch_norm",
    "stem",
    "triton",
    "upsample_argmax",
    "upsample_cross_entropy",
    "use_backend",
]
