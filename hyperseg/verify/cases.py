"""The cases of the verification: a few small calls per operator that reach each kernel the five networks launch.

Shapes, signals and paddings are those of the networks, on few patches. All cases together take about a second on a CPU:
forward, backward and reference, in three dtypes. On a GPU most of the time is Triton's compiler, which runs once per
kernel and set of constants, so a further case may cost seconds. Gradients must not depend on rounding (tests/verify).
"""

import torch

from hyperseg.verify.arguments import (
    Case,
    batch_norm,
    channels_last,
    context,
    conv,
    generators,
    level,
    logits,
    loss,
    mbconv,
    mbconv_chain,
    normalisation,
    pointwise,
    residual,
    stem,
)

_MERGED = level(1, 16, 8, 19, 52, (1, 2), (16, 16), spare=7)  # weights of several levels from one generator
# Maps in channels-last memory, as the engine has them.
_OWN = channels_last(level(1, 6, 16, 16, 48, (2, 3), (8, 8), signal=(256, 32, 192, 16, 2352)), 0, 1)
_NEIGHBOUR = channels_last(level(1, 8, 12, 8, 44, (2, 3), (8, 8), None, "neighbour", (112, 16, 96, 16, 1728)), 0, 1)
_POINTWISE = channels_last(level(1, 10, 32, 16, 0, (2, 3), (4, 4), signal=(160, 32, 128, 8, 704)), 0, 1)
_FIRST = channels_last(level(1, 80, 0, 64, 0, (2, 3), (1, 1), signal=(416, 0, 416, 32, 5248)), 0)
_HEAD = ((320, 1280, "silu", (4, 8)), (24, 6, "none", (32, 64)), (112, 28, "none", (8, 16)))
_OVERLAPPING = ((0, 192, 16, 2352, 2352), (0, 320, 4, 700, 700))
_PADDED = ((0, 96, 16, 1728, 1716), (96, 48, 16, 992, 992))  # more rows than parameters

CASES: tuple[Case, ...] = (
    Case("generate_weights", "overlapping", generators(1, 320, (2, 3), _OVERLAPPING)),
    Case("generate_weights", "padded-rows", generators(2, 144, (1, 5), _PADDED)),
    Case("patch_conv2d", "kernel-1", conv(1, 44, 16, (2, 3), (4, 4), (1, 1), bias=False)),
    Case("patch_conv2d", "kernel-3", conv(2, 6, 8, (2, 3), (4, 4), (3, 3))),
    Case("patch_inverted_residual", "own", residual(1, 24, 48, 16, (2, 3), (8, 8), "own")),
    Case("patch_inverted_residual", "neighbour", residual(1, 22, 44, 8, (2, 3), (8, 8), "neighbour")),
    Case("patch_inverted_residual_batch_norm", "own", batch_norm(1, 24, 48, 16, (2, 3), (8, 8), "own")),
    Case("patch_inverted_residual_batch_norm", "neighbour", batch_norm(1, 22, 44, 8, (2, 3), (8, 8), "neighbour")),
    Case("decoder_level", "kernel-1", _POINTWISE),
    Case("decoder_level", "kernel-1-first", _FIRST),
    Case("decoder_level", "own", _OWN),
    Case("decoder_level", "own-weights", _MERGED),
    Case("decoder_level", "neighbour", _NEIGHBOUR),
    Case("decoder_level_argmax", "own", _OWN),
    Case("decoder_level_argmax", "own-weights", _MERGED),
    Case("decoder_level_argmax", "neighbour", _NEIGHBOUR),
    Case("mbconv", "residual", mbconv(1, 16, 96, 16, 4, image=(9, 19), add=True, nhwc=True)),
    Case("mbconv", "kernel-5-stride-2", mbconv(1, 24, 144, 40, 6, 5, 2, (1, 2, 1, 2), (18, 34), nhwc=True)),
    Case("mbconv", "not-expanded", mbconv(1, 32, 32, 16, 8, image=(12, 24), expand=False, nhwc=True)),
    Case("mbconv", "wide", mbconv(1, 80, 480, 112, 20, 5, image=(4, 8), nhwc=True)),
    # On a GPU with 16-bit floats: expanded within the filter, both kinds of gates, each shape of a tile.
    Case(
        "mbconv_chain",
        "expanding",
        mbconv_chain(
            mbconv(1, 40, 240, 80, 10, 3, 2, (0, 1, 0, 1), (18, 34), nhwc=True),
            mbconv(1, 80, 480, 80, 20, image=(9, 17), add=True),
            mbconv(1, 80, 480, 112, 20, 5, image=(9, 17)),
            mbconv(1, 112, 672, 192, 28, 5, 2, (1, 2, 1, 2), (9, 17)),
            mbconv(1, 192, 1152, 192, 48, 5, image=(4, 8), add=True),
            kept=(2,),
        ),
    ),
    Case(
        "mbconv_chain",
        "not-expanded",
        mbconv_chain(
            mbconv(1, 32, 32, 16, 8, image=(12, 24), expand=False, nhwc=True),
            mbconv(1, 16, 16, 16, 4, 5, 2, (1, 2, 1, 2), (12, 24), expand=False),
            mbconv(1, 16, 96, 24, 4, 3, 2, (0, 1, 0, 1), (6, 12)),
        ),
    ),
    Case("stem", "padded", stem(1, 32, frame=(30, 61), image=(32, 64))),
    Case("stem", "channels-40", stem(1, 40, frame=(32, 64))),
    Case("normalise_frames", "padded", normalisation(1, (30, 61), (32, 64))),
    Case("pointwise_conv", "head", pointwise(*_HEAD, n=1, nhwc=True)),
    Case("pointwise_conv", "reduce", pointwise((1280, 640, "relu"), n=1, size=(4, 8), nhwc=True)),
    Case("context_head", "pyramid", context(1, 256, 1, 128, (12, 18), nhwc=True)),
    Case("context_head", "unet", context(1, 192, 2, None, (7, 10), nhwc=True)),
    Case("upsample_argmax", "double", channels_last(logits(1, 19, (16, 32), (32, 64)), 0)),
    Case("upsample_argmax", "odd-ratio", logits(2, 5, (13, 11), (29, 17))),
    Case("upsample_cross_entropy", "plain", loss(1, 19, (16, 32), (32, 64))),
    Case(
        "upsample_cross_entropy",
        "bootstrapped",
        loss(2, 3, (33, 40), (66, 80), bootstrap=2000, threshold=9.0),
        (torch.float32,),  # in 16-bit floats losses tie within rounding, so other pixels may be among the worst
    ),
)


def cases_of(operator: str, dtype: torch.dtype) -> list[Case]:
    """Return the cases that check an operator, or the gradient of one, in this dtype."""
    forward = operator.removesuffix("_backward")
    return [case for case in CASES if case.operator == forward and dtype in case.dtypes]
