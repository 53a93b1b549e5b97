"""Errors of the public functions: the exception's type, and a message with the fault and the expected value."""

import re

import pytest
import torch

from hyperseg import ops


def t(*shape: int, dtype=torch.float32, device="cpu") -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype, device=device)


def generate(signal=None, generators=None, **options):
    ops.generate_weights(
        t(2, 8, 2, 3) if signal is None else signal, [t(6, 8)] if generators is None else generators, **options
    )


def conv(x=None, weights=None, bias=None, **options):
    x = t(2, 3, 4, 6) if x is None else x
    weights = t(2, 2, 3, 12) if weights is None else weights
    ops.patch_conv2d(x, weights, bias, **({"out_channels": 4} | options))


def block(x=None, weights=None, bias=None, **options):
    x = t(2, 3, 4, 6) if x is None else x
    weights = t(2, 2, 3, 80) if weights is None else weights
    ops.patch_inverted_residual(x, weights, bias, **({"hidden": 5, "out_channels": 4} | options))


def batch_norm(x=None, weights=None, scale=None, shift=None, **options):
    x = t(2, 3, 4, 6) if x is None else x
    weights = t(2, 2, 3, 80) if weights is None else weights
    scale, shift = t(14) if scale is None else scale, t(14) if shift is None else shift
    ops.patch_inverted_residual_batch_norm(x, weights, scale, shift, **({"hidden": 5, "out_channels": 4} | options))


def level(skip=None, previous=None, **options):
    skip = t(2, 3, 4, 6) if skip is None else skip
    defaults = {"weights": t(2, 2, 3, 20), "bias": t(4), "out_channels": 4}
    ops.decoder_level(skip, previous, **(defaults | options))


def from_signal(**options):
    level(**({"weights": None, "signal": t(2, 8, 2, 3), "generator": t(20, 8)} | options))


def encoder_block(x=None, **options):
    weights = {
        "expand": t(12, 4),
        "expand_bias": t(12),
        "depthwise": t(12, 3, 3),
        "depthwise_bias": t(12),
        "reduce": t(2, 12),
        "reduce_bias": t(2),
        "gate": t(12, 2),
        "gate_bias": t(12),
        "project": t(4, 12),
        "project_bias": t(4),
    }
    ops.mbconv(t(2, 4, 6, 7) if x is None else x, **(weights | {"padding": (1, 1, 1, 1)} | options))


def stem(frames=None, **options):
    tensors = {"scale": t(3), "shift": t(3), "weight": t(8, 3, 3, 3), "bias": t(8)}
    frames = t(2, 6, 7, 3, dtype=torch.uint8) if frames is None else frames
    ops.stem(frames, **(tensors | {"stride": 2, "padding": (0, 1, 0, 1)} | options))


def normalise(frames=None, **options):
    frames = t(2, 6, 7, 3, dtype=torch.uint8) if frames is None else frames
    ops.normalise_frames(frames, **({"scale": t(3), "shift": t(3), "like": t(1)} | options))


def pointwise(**options):
    given = {"xs": [t(2, 3, 4, 6), t(1, 5, 2, 2)], "weights": [t(4, 3), t(6, 5)], "biases": [t(4), t(6)]}
    ops.pointwise_conv(**(given | {"activations": ["relu", "none"]} | options))


def context(x=None, **options):
    given = {
        "reduce": t(4, 6),
        "reduce_bias": t(4),
        "down": [t(4, 4, 2, 2)],
        "down_biases": [t(4)],
        "up": [t(4, 8)],
        "up_biases": [t(4)],
    }
    ops.context_head(t(2, 6, 4, 6) if x is None else x, **(given | options))


def argmax(logits=None, size=(8, 8)):
    ops.upsample_argmax(t(2, 3, 4, 4) if logits is None else logits, size)


def loss(logits=None, labels=None, **options):
    labels = t(2, 8, 8, dtype=torch.int64) if labels is None else labels
    ops.upsample_cross_entropy(t(2, 3, 4, 4) if logits is None else logits, labels, **options)


HALF = {"dtype": torch.float16}
META = {"device": "meta"}
INT = {"dtype": torch.int64}
BYTE = {"dtype": torch.uint8}

WRONG_VALUES = {
    # Maps: four dimensions, not empty.
    "signal of 3 dimensions": (
        lambda: generate(t(8, 2, 3)),
        "generate_weights: signal must be [N, C, fh, fw], got 3 dimensions: (8, 2, 3).",
    ),
    "empty signal": (lambda: generate(t(0, 8, 2, 3)), "signal must not be empty, got shape (0, 8, 2, 3)"),
    "map of 5 dimensions": (lambda: conv(t(1, 2, 3, 4, 6)), "patch_conv2d: x must be [N, C, H, W], got 5"),
    "empty map": (lambda: conv(t(2, 3, 0, 6)), "patch_conv2d: x must not be empty, got shape (2, 3, 0, 6)"),
    "block on 3 dimensions": (lambda: block(t(3, 4, 6)), "patch_inverted_residual: x must be [N, C, H, W]"),
    "empty block": (lambda: block(t(2, 0, 4, 6)), "patch_inverted_residual: x must not be empty"),
    "skip of 3 dimensions": (lambda: level(t(3, 4, 6)), "decoder_level: skip must be [N, C, H, W]"),
    "previous of 3 dimensions": (
        lambda: level(previous=t(4, 2, 3)),
        "decoder_level: previous must be [N, C, H, W], got 3 dimensions",
    ),
    "empty previous": (lambda: level(previous=t(2, 0, 2, 3)), "previous must not be empty"),
    "level signal of 3 dimensions": (
        lambda: from_signal(signal=t(8, 2, 3)),
        "decoder_level: signal must be [N, C, fh, fw], got 3 dimensions",
    ),
    "logits of 3 dimensions": (lambda: argmax(t(3, 4, 4)), "upsample_argmax: logits must be [N, C, h, w]"),
    "no logits": (lambda: argmax(t(2, 0, 4, 4)), "upsample_argmax: logits must not be empty"),
    "logits of 3 dimensions to a loss": (lambda: loss(t(3, 4, 4)), "cross_entropy: logits must be [N, C, h, w]"),
    # Generators.
    "no generators": (
        lambda: generate(generators=[]),
        "needs one offset, group count and size for each generator, got 0 generators",
    ),
    "more offsets than generators": (
        lambda: generate(offsets=[0, 0]),
        "got 1 generators, 2 offsets, 1 group counts and 1 sizes",
    ),
    "generator of 4 dimensions": (
        lambda: generate(generators=[t(6, 8, 1, 1)]),
        "a generator must be [rows, signal channels / groups], got [6, 8, 1, 1]",
    ),
    "generator on another device": (
        lambda: generate(generators=[t(6, 8, **META)]),
        "generator is on meta but signal on cpu; move them together",
    ),
    "rows that do not divide": (
        lambda: generate(generators=[t(6, 2)], groups=4),
        "6 generator rows do not divide into 4 groups",
    ),
    "more parameters than rows": (lambda: generate(sizes=7), "7 parameters are asked of a generator with only 6 rows"),
    "channel range beyond the signal": (
        lambda: generate(offsets=1),
        "a generator reads signal channels 1 to 9, but the signal has 8",
    ),
    "negative offset": (lambda: generate(offsets=-1), "reads signal channels -1 to 7"),
    "no groups": (lambda: generate(groups=0), "generate_weights: groups must be at least 1, got 0"),
    "no parameters": (lambda: generate(sizes=0), "generate_weights: size must be at least 1, got 0"),
    # Weights of patches.
    "weights of 3 dimensions": (lambda: conv(weights=t(2, 3, 12)), "weights must be [N, fh, fw, P], got 3"),
    "no patches": (lambda: conv(weights=t(2, 0, 3, 12)), "weights must not be empty"),
    "weights for other images": (
        lambda: conv(weights=t(1, 2, 3, 12)),
        "weights are for 1 images but the map has 2; the first dimensions must agree",
    ),
    "too many parameters": (
        lambda: conv(weights=t(2, 2, 3, 13)),
        "weights have 13 parameters per patch, expected 12 = out_channels * (in_channels / groups) * kernel height",
    ),
    "grid that does not divide": (
        lambda: conv(weights=t(2, 3, 3, 12)),
        "a map of 4x6 pixels does not divide into 3x3 patches; pad it to a multiple of the grid",
    ),
    "columns that do not divide": (lambda: conv(weights=t(2, 2, 4, 12)), "does not divide into 2x4 patches"),
    "block with other parameters": (
        lambda: block(weights=t(2, 2, 3, 79)),
        "patch_inverted_residual: weights have 79 parameters per patch, expected 80 = in * hidden + 9 * hidden",
    ),
    "block grid that does not divide": (lambda: block(weights=t(2, 1, 4, 80)), "divide into 1x4 patches"),
    "batch norm with other parameters": (
        lambda: batch_norm(weights=t(2, 2, 3, 81)),
        "batch_norm: weights have 81 parameters per patch, expected 80",
    ),
    "level with other parameters": (
        lambda: level(weights=t(2, 2, 3, 21)),
        "weights have 21 parameters per patch, expected 20 = the parameters of 5 -> 4 channels",
    ),
    "level weights without parameters for previous": (
        lambda: level(previous=t(2, 1, 2, 3)),
        "expected 24 = the parameters of 6 -> 4 channels",
    ),
    "weights on another device": (
        lambda: conv(weights=t(2, 2, 3, 12, **META)),
        "patch_conv2d: weights is on meta but x on cpu",
    ),
    # Convolutions.
    "even kernel": (
        lambda: conv(kernel_size=2),
        "kernel sizes must be odd, so that the output is as large as the input; got 2x2",
    ),
    "kernel of no width": (lambda: conv(kernel_size=(1, -1)), "kernel sizes must be odd"),
    "kernel of three numbers": (
        lambda: conv(kernel_size=(1, 1, 1)),
        "kernel_size must be an integer or (vertical, horizontal), got (1, 1, 1)",
    ),
    "dilation of one number in a list": (
        lambda: conv(dilation=(1,)),
        "dilation must be an integer or (vertical, horizontal), got (1,)",
    ),
    "no dilation": (lambda: conv(dilation=0), "dilation must be at least 1, got 0"),
    "no output": (lambda: conv(out_channels=0), "out_channels must be at least 1, got 0"),
    "no convolution groups": (lambda: conv(groups=0), "patch_conv2d: groups must be at least 1, got 0"),
    "inputs that do not divide": (
        lambda: conv(groups=2),
        "3 input and 4 output channels do not both divide into 2 groups",
    ),
    "outputs that do not divide": (lambda: conv(groups=3), "do not both divide into 3 groups"),
    "unknown padding": (
        lambda: conv(padding_mode="same"),
        "padding_mode must be one of 'reflect', 'zeros', 'replicate', 'circular', got 'same'",
    ),
    "bias of another length": (
        lambda: conv(bias=t(3)),
        "patch_conv2d: bias must be [4] (one for each output channel), got [3]",
    ),
    "bias of two dimensions": (lambda: conv(bias=t(4, 1)), "bias must be [4]"),
    "map too small to reflect": (
        lambda: conv(t(2, 3, 2, 3), t(2, 2, 3, 300), kernel_size=5),
        "the map is 2x3 pixels, too small to reflect 2x2 at its border; use a larger image",
    ),
    "map too small to wrap": (
        lambda: conv(t(2, 3, 2, 3), t(2, 2, 3, 108), kernel_size=3, dilation=(3, 1), padding_mode="circular"),
        "a map of 2x3 pixels cannot wrap 3x1 around its border",
    ),
    # Inverted residuals.
    "no hidden channels": (lambda: block(hidden=0), "hidden must be at least 1, got 0"),
    "no block output": (lambda: block(out_channels=0), "out_channels must be at least 1, got 0"),
    "unknown halo": (lambda: block(halo="both"), "halo must be one of 'own', 'neighbour', got 'both'"),
    "block on one row": (
        lambda: block(t(2, 3, 1, 6), t(2, 1, 3, 80)),
        "patch_inverted_residual: the map is 1x6 pixels, too small to reflect 1x1",
    ),
    "block bias of another length": (
        lambda: block(bias=t(13)),
        "bias must be [14] (expand | depthwise | project), got [13]",
    ),
    "scale of another length": (lambda: batch_norm(scale=t(13)), "scale must be [14]"),
    "shift of another length": (lambda: batch_norm(shift=t(15)), "shift must be [14]"),
    "scale on another device": (
        lambda: batch_norm(scale=t(14, **META), shift=t(14, **META)),
        "scale is on meta but x on cpu",
    ),
    # Levels.
    "negative hidden": (lambda: level(hidden=-1), "hidden must be 0 (a 1x1 level) or more, got -1"),
    "level without output": (lambda: level(out_channels=0), "decoder_level: out_channels must be at least 1"),
    "labels of a level with too many outputs": (
        lambda: ops.decoder_level_argmax(
            t(2, 3, 4, 6), None, weights=t(2, 2, 3, 5 * 257), bias=t(257), out_channels=257
        ),
        "decoder_level_argmax: labels are uint8, so out_channels can be 256 at most, got 257",
    ),
    "level with unknown halo": (lambda: level(halo=""), "decoder_level: halo must be one of"),
    "previous of other images": (
        lambda: level(previous=t(1, 4, 2, 3)),
        "skip has 2 images but previous 1; they must agree",
    ),
    "level bias of another length": (
        lambda: level(bias=t(5)),
        "decoder_level: bias must be [4] (expand | depthwise | project, or just out_channels), got [5]",
    ),
    "residual level on one column": (
        lambda: level(t(2, 3, 4, 1), weights=t(2, 2, 1, 5 * 6 + 9 * 6 + 6 * 4), bias=t(16), hidden=6),
        "decoder_level: the map is 4x1 pixels, too small to reflect",
    ),
    "signal of other images": (
        lambda: from_signal(signal=t(1, 8, 2, 3)),
        "the signal has 1 images but skip 2; they must agree",
    ),
    "signal grid that does not divide": (
        lambda: from_signal(signal=t(2, 8, 3, 3)),
        "decoder_level: a map of 4x6 pixels does not divide into 3x3 patches",
    ),
    "generator with too few rows": (
        lambda: from_signal(generator=t(19, 8)),
        "decoder_level: 20 parameters are asked of a generator with only 19 rows",
    ),
    "generator of another device": (lambda: from_signal(generator=t(20, 8, **META)), "generator is on meta"),
    # Encoder blocks, stem, labels and loss.
    "encoder block of 3 dimensions": (
        lambda: encoder_block(t(4, 6, 7)),
        "mbconv: x must be [N, C, H, W], got 3 dimensions",
    ),
    "expand of another map": (lambda: encoder_block(t(2, 5, 6, 7)), "mbconv: expand must be [12, 5], got [12, 4]"),
    "expand without bias": (lambda: encoder_block(expand_bias=None), "mbconv: give expand and expand_bias, or neither"),
    "depthwise of more channels than x": (
        lambda: encoder_block(expand=None, expand_bias=None),
        "mbconv: without expand, depthwise must have as many channels as x, 4, got 12",
    ),
    "depthwise weight in the layout of conv2d": (
        lambda: encoder_block(depthwise=t(12, 1, 3, 3)),
        "mbconv: depthwise must be [hidden, size, size], got [12, 1, 3, 3]",
    ),
    "gate of another width": (lambda: encoder_block(gate=t(2, 12)), "mbconv: gate must be [12, 2], got [2, 12]"),
    "depthwise of 9x9 taps": (
        lambda: encoder_block(depthwise=t(12, 9, 9)),
        "mbconv: the depthwise convolution must have 1x1 to 7x7 taps, got 9x9",
    ),
    "padding by more than the kernel": (
        lambda: encoder_block(padding=(1, 1, 3, 1)),
        "mbconv: padding must be [left, right, top, bottom], each 0 to 2, got [1, 1, 3, 1]",
    ),
    "encoder block on too small a map": (
        lambda: encoder_block(t(2, 4, 2, 7), padding=(0, 0, 0, 0)),
        "mbconv: x of [2, 7] is smaller than the depthwise convolution, 3x3",
    ),
    "encoder block at stride 0": (lambda: encoder_block(stride=0), "mbconv: stride must be at least 1, got 0"),
    "residual of another shape": (
        lambda: encoder_block(stride=2, residual=True),
        "mbconv: residual adds x, [4, 6, 7], to the result, [4, 3, 4]: the shapes must agree",
    ),
    "frames in NCHW": (lambda: stem(t(2, 3, 6, 7, **BYTE)), "stem: frames must be [N, H, W, 3], got [2, 3, 6, 7]"),
    "a single frame without a batch": (
        lambda: stem(t(6, 7, 3, **BYTE)),
        "stem: frames must be a tensor [N, H, W, 3], got a tensor [6, 7, 3]",
    ),
    "no frames": (lambda: stem(t(0, 6, 7, 3, **BYTE)), "stem: frames must not be empty, got shape [0, 6, 7, 3]"),
    "stem with a size of one number": (
        lambda: stem(size=64),
        "stem: size must be (height, width) of the padded image, got 64",
    ),
    "stem with one padding": (lambda: stem(padding=1), "stem: padding must be (left, right, top, bottom), got 1"),
    "stem of grey images": (
        lambda: stem(weight=t(8, 1, 3, 3)),
        "stem: weight must be [C, 3, size, size], got [8, 1, 3, 3]",
    ),
    "stem that is not square": (
        lambda: stem(weight=t(8, 3, 3, 5)),
        "stem: weight must be [C, 3, size, size], got [8, 3, 3, 5]",
    ),
    "stem of 9x9 taps": (
        lambda: stem(weight=t(8, 3, 9, 9)),
        "stem: the convolution must have 1x1 to 7x7 taps, got 9x9",
    ),
    "stem bias of another length": (lambda: stem(bias=t(7)), "stem: bias must be [8] (one for each output), got [7]"),
    "stem scale of one channel": (lambda: stem(scale=t(1)), "stem: scale must be [3] (red, green, blue), got [1]"),
    "stem shift of four channels": (lambda: stem(shift=t(4)), "stem: shift must be [3] (red, green, blue), got [4]"),
    "stem on another device": (
        lambda: stem(weight=t(8, 3, 3, 3, **META), bias=t(8, **META)),
        "stem: weight is on meta but frames on cpu; move them together",
    ),
    "stem size smaller than the frame": (
        lambda: stem(size=(6, 6)),
        "stem: size is that of the padded image, at least that of the frames, [6, 7], got [6, 6]",
    ),
    "stem at stride 0": (lambda: stem(stride=0), "stem: stride must be at least 1, got 0"),
    "stem with negative padding": (
        lambda: stem(padding=(0, 1, -1, 1)),
        "stem: padding must be [left, right, top, bottom], each 0 to 2, got [0, 1, -1, 1]",
    ),
    "stem with two paddings": (lambda: stem(padding=(1, 1)), "stem: padding must be (left, right, top, bottom)"),
    "stem on too small a frame": (
        lambda: stem(t(2, 2, 7, 3, **BYTE), padding=(0, 0, 0, 0)),
        "stem: an image of [2, 7] is smaller than the convolution, 3x3",
    ),
    "normalised frames in NCHW": (
        lambda: normalise(t(2, 3, 6, 7, **BYTE)),
        "normalise_frames: frames must be [N, H, W, 3], got [2, 3, 6, 7]",
    ),
    "normalised frames of three dimensions": (
        lambda: normalise(t(6, 7, 3, **BYTE)),
        "normalise_frames: frames must be a tensor [N, H, W, 3], got a tensor [6, 7, 3]",
    ),
    "no frames to normalise": (lambda: normalise(t(0, 6, 7, 3, **BYTE)), "normalise_frames: frames must not be empty"),
    "normalised frames of one number": (
        lambda: normalise(size=64),
        "normalise_frames: size must be (height, width) of the images, got 64",
    ),
    "normalised frames of a smaller size": (
        lambda: normalise(size=(6, 6)),
        "normalise_frames: size is that of the padded image, at least that of the frames, [6, 7], got [6, 6]",
    ),
    "normalisation with one scale": (
        lambda: normalise(scale=t(1)),
        "normalise_frames: scale must be [3] (red, green, blue), got [1]",
    ),
    "normalisation with a shift on another device": (
        lambda: normalise(t(2, 6, 7, 3, **BYTE), shift=t(3, **META)),
        "normalise_frames: shift is on meta but frames on cpu",
    ),
    "no 1x1 convolutions": (
        lambda: pointwise(xs=[], weights=[], biases=[], activations=[]),
        "pointwise_conv: xs must have at least one map",
    ),
    "1x1 convolutions with a weight too few": (
        lambda: pointwise(weights=[t(4, 3)]),
        "needs one weight, bias and activation for each map, got 2 maps, 1 weights, 2 biases and 2 activations",
    ),
    "1x1 convolution of 3 dimensions": (
        lambda: pointwise(xs=[t(3, 4, 6), t(1, 5, 2, 2)]),
        "pointwise_conv: x must be [N, C, H, W], got 3 dimensions",
    ),
    "1x1 convolution of other channels": (
        lambda: pointwise(weights=[t(4, 3), t(6, 4)]),
        "pointwise_conv: weight must be [out, 5] for x of [1, 5, 2, 2], got [6, 4]",
    ),
    "1x1 convolution with a bias of another length": (
        lambda: pointwise(biases=[t(3), t(6)]),
        "pointwise_conv: bias must be [4] (one for each output), got [3]",
    ),
    "1x1 convolution with another activation": (
        lambda: pointwise(activations="gelu"),
        "pointwise_conv: activation must be one of 'none', 'relu', 'silu', got 'gelu'",
    ),
    "context of 3 dimensions": (lambda: context(t(6, 4, 6)), "context_head: x must be [N, C, H, W], got 3 dimensions"),
    "context with half a reduction": (
        lambda: context(reduce_bias=None),
        "context_head: give reduce and reduce_bias, or neither",
    ),
    "context without levels": (
        lambda: context(down=[], down_biases=[], up=[], up_biases=[]),
        "context_head: needs as many down as up, at least one, with a bias each, got 0 down",
    ),
    "context that halves by 3x3": (
        lambda: context(down=[t(4, 4, 3, 3)]),
        "context_head: down must be [out, 4, 2, 2], got [4, 4, 3, 3]",
    ),
    "context that forgets the average": (
        lambda: context(up=[t(4, 4)]),
        "context_head: up must be [out, 8], got [4, 4]",
    ),
    "context that does not reduce": (
        lambda: context(reduce=None, reduce_bias=None),
        "context_head: down must be [out, 6, 2, 2], got [4, 4, 2, 2]",
    ),
    "context with a bias of another length": (
        lambda: context(up_biases=[t(5)]),
        "context_head: up bias must be [4] (one for each output), got [5]",
    ),
    "labels of 257 classes": (
        lambda: argmax(t(1, 257, 2, 2)),
        "labels are uint8, so there can be 256 classes at most, got 257",
    ),
    "labels of no height": (lambda: argmax(size=(0, 4)), "upsample_argmax: height must be at least 1, got 0"),
    "labels of negative width": (lambda: argmax(size=(4, -1)), "upsample_argmax: width must be at least 1"),
    "int32 labels": (
        lambda: loss(labels=t(2, 8, 8, dtype=torch.int32)),
        "labels must be int64 or uint8 [N, H, W], got torch.int32 [2, 8, 8]; convert them with labels.long()",
    ),
    "labels of 4 dimensions": (lambda: loss(labels=t(2, 1, 8, 8, **INT)), "labels must be int64 or uint8 [N, H, W]"),
    "labels of other images": (
        lambda: loss(labels=t(1, 8, 8, **INT)),
        "labels are for 1 images but logits for 2; the first dimensions must agree",
    ),
    "no labels": (lambda: loss(labels=t(2, 0, 8, **INT)), "labels must not be empty, got shape (2, 0, 8)"),
    "labels on another device": (
        lambda: loss(labels=t(2, 8, 8, device="meta", **INT)),
        "labels are on meta but logits on cpu; move them together",
    ),
    "negative bootstrap": (lambda: loss(bootstrap=-1), "bootstrap must be 0 (off) or a number of pixels, got -1"),
    "label that is no class": (
        lambda: loss(labels=torch.full((2, 8, 8), 3)),
        "128 labels are outside 0..2 and not 255 (ignored), such as [3]; map the label files to classes first",
    ),
    "negative label": (lambda: loss(labels=torch.full((2, 8, 8), -1)), "128 labels are outside 0..2"),
    "uint8 label that is no class": (
        lambda: loss(labels=torch.full((2, 8, 8), 200, **BYTE), ignore_index=-56),
        "128 labels are outside 0..2 and not -56 (ignored), such as [200]",
    ),
    "one label among others that is no class": (
        lambda: loss(labels=torch.tensor([0, 1, 254, 255]).view(1, 2, 2).repeat(2, 1, 1), bootstrap=2),
        "2 labels are outside 0..2 and not 255 (ignored), such as [254]",
    ),
    "255 where another label is ignored": (
        lambda: loss(labels=torch.full((2, 8, 8), 255), ignore_index=-1),
        "outside 0..2 and not -1 (ignored), such as [255]",
    ),
    "class weights of other classes": (
        lambda: loss(weight=t(4)),
        "upsample_cross_entropy: weight must be [3] (one number per class of the logits), got [4]",
    ),
    "class weights of two dimensions": (lambda: loss(weight=t(1, 3)), "weight must be [3] (one number per class"),
    "class weights on another device": (
        lambda: loss(weight=t(3, **META)),
        "weight is on meta but logits on cpu; move them together",
    ),
    "negative class weight": (
        lambda: loss(weight=torch.tensor([1.0, 0.5, -2.0])),
        "weight must be finite and at least 0, got -2.0 for class 2",
    ),
    "NaN among class weights": (lambda: loss(weight=torch.tensor([1.0, torch.nan, 2.0])), "got nan for class 1"),
    "infinite class weight": (lambda: loss(weight=torch.tensor([1.0, torch.inf, 2.0])), "got inf for class 1"),
    "class weights with a gradient": (
        lambda: loss(weight=t(3).requires_grad_()),
        "weight is a constant without gradient; pass weight.detach()",
    ),
    "label of a data set that is no class": (
        lambda: ops.check_labels(torch.tensor([[0, 3], [255, -1]]), 3),
        "check_labels: 2 labels are outside 0..2 and not 255 (ignored), such as [-1, 3]",
    ),
    "labels of a data set without classes": (
        lambda: ops.check_labels(t(2, 2, **INT), 0),
        "check_labels: classes must be at least 1, got 0",
    ),
    "a float for kernel_size": (
        lambda: conv(kernel_size=3.0),
        "patch_conv2d: kernel_size must be an integer or (vertical, horizontal), got 3.0",
    ),
    "label size of one number": (lambda: argmax(size=8), "upsample_argmax: size must be (H, W), got 8"),
    "label size of three numbers": (
        lambda: argmax(size=(8, 8, 3)),
        "upsample_argmax: size must be (H, W), got (8, 8, 3)",
    ),
    "label size beyond memory": (
        lambda: argmax(size=(2**33, 2**33)),
        "upsample_argmax: height and width must be 2^24 at most, got 8589934592 and 8589934592",
    ),
    "block with one padding": (
        lambda: encoder_block(padding=1),
        "mbconv: padding must be (left, right, top, bottom), got 1",
    ),
    "a number for frames": (lambda: stem(5), "stem: frames must be a tensor [N, H, W, 3], got 5"),
    "frames of one dimension": (lambda: stem(t(5)), "stem: frames must be a tensor [N, H, W, 3], got a tensor [5]"),
    "groups without a signal": (
        lambda: level(groups=7),
        "decoder_level: generator, offset and groups are for a signal, which was not given",
    ),
    "a generator without a signal": (
        lambda: level(generator=t(20, 8)),
        "decoder_level: generator, offset and groups are for a signal, which was not given",
    ),
    "a signal without a generator": (
        lambda: from_signal(generator=None),
        "decoder_level: a signal needs a generator to make weights from it, got None",
    ),
    "neither signal nor weights": (
        lambda: level(weights=None),
        "decoder_level: give either signal and generator, or weights; got neither",
    ),
    "both signal and weights": (
        lambda: from_signal(weights=t(2, 2, 3, 20)),
        "decoder_level: give either signal and generator, or weights; got both",
    ),
}

# Arguments of a wrong type or dtype.
WRONG_TYPES = {
    "level without a bias": (
        lambda: level(bias=None),
        "decoder_level: bias must be a tensor, got None",
    ),
    "integer signal": (lambda: generate(t(2, 8, 2, 3, **INT)), "signal must be floating point, got torch.int64"),
    "integer map": (lambda: conv(t(2, 3, 4, 6, **INT)), "patch_conv2d: x must be floating point"),
    "batch norm on integers": (lambda: batch_norm(t(2, 3, 4, 6, **INT)), "batch_norm: x must be floating point"),
    "integer logits": (lambda: argmax(t(2, 3, 4, 4, **INT)), "upsample_argmax: logits must be floating point"),
    "class weights of another dtype": (
        lambda: loss(weight=t(3, **HALF)),
        "weight must be torch.float32 for logits of torch.float32, got torch.float16; convert it with weight.to(",
    ),
    "integer class weights": (lambda: loss(weight=t(3, **INT)), "weight must be torch.float32 for logits"),
    "a list of class weights": (
        lambda: loss(weight=[1.0, 2.0, 3.0]),
        "upsample_cross_entropy: weight must be a tensor or None, got [1.0, 2.0, 3.0]",
    ),
    "labels of a data set in floating point": (
        lambda: ops.check_labels(t(2, 2), 3),
        "check_labels: labels must be a tensor of integers, got torch.float32; convert them with .long()",
    ),
    "a list of labels": (
        lambda: ops.check_labels([0, 1], 3),
        "check_labels: labels must be a tensor of integers, got [0, 1]",
    ),
    "integer logits to a loss": (lambda: loss(t(2, 3, 4, 4, **INT)), "cross_entropy: logits must be floating"),
    "generator of another dtype": (
        lambda: generate(generators=[t(6, 8, **HALF)]),
        "generator is torch.float16 but signal torch.float32; convert one to the other",
    ),
    "integer weights": (lambda: conv(weights=t(2, 2, 3, 12, **INT)), "weights must be floating point"),
    "weights of another dtype": (
        lambda: conv(weights=t(2, 2, 3, 12, **HALF)),
        "patch_conv2d: weights is torch.float16 but x torch.float32",
    ),
    "block weights of another dtype": (
        lambda: block(weights=t(2, 2, 3, 80, **HALF)),
        "patch_inverted_residual: weights is torch.float16",
    ),
    "bias of another dtype": (lambda: conv(bias=t(4, **HALF)), "bias is torch.float16 but x torch.float32"),
    "block bias of another dtype": (lambda: block(bias=t(14, **HALF)), "bias is torch.float16"),
    "shift of another dtype": (lambda: batch_norm(shift=t(14, **HALF)), "shift is torch.float16 but scale"),
    "float16 statistics of a float32 map": (
        lambda: batch_norm(scale=t(14, **HALF), shift=t(14, **HALF)),
        "scale must be torch.float32, for a map of torch.float32, got torch.float16",
    ),
    "previous of another dtype": (
        lambda: level(previous=t(2, 4, 2, 3, **HALF)),
        "decoder_level: previous is torch.float16 but skip torch.float32",
    ),
    "half-precision projection": (
        lambda: encoder_block(project=t(4, 12, **HALF)),
        "mbconv: project is torch.float16 but x torch.float32",
    ),
    "float32 frames": (
        lambda: stem(t(2, 6, 7, 3)),
        "stem: frames must be torch.uint8, got torch.float32; give the pixels as they are",
    ),
    "integer stem": (lambda: stem(weight=t(8, 3, 3, 3, **INT)), "stem: weight must be floating point, got torch.int64"),
    "half-precision bias of a stem": (
        lambda: stem(bias=t(8, **HALF)),
        "stem: bias is torch.float16 but weight torch.float32",
    ),
    "half-precision scale": (
        lambda: stem(scale=t(3, **HALF), weight=t(8, 3, 3, 3, **HALF), bias=t(8, **HALF)),
        "stem: scale must be torch.float32, for a weight of torch.float16, got torch.float16",
    ),
    "float64 shift": (
        lambda: stem(shift=t(3, dtype=torch.float64)),
        "stem: shift must be torch.float32, for a weight of torch.float32, got torch.float64",
    ),
    "float32 frames to normalise": (
        lambda: normalise(t(2, 6, 7, 3)),
        "normalise_frames: frames must be torch.uint8, got torch.float32; give the pixels as they are",
    ),
    "integer images": (
        lambda: normalise(like=t(1, **INT)),
        "normalise_frames: like must be floating point, got torch.int64",
    ),
    "half-precision scale of images": (
        lambda: normalise(scale=t(3, **HALF)),
        "normalise_frames: scale must be torch.float32, for images of torch.float32, got torch.float16",
    ),
    "1x1 convolutions of two dtypes": (
        lambda: pointwise(xs=[t(2, 3, 4, 6), t(1, 5, 2, 2, **HALF)]),
        "pointwise_conv: x is torch.float16 but the first x torch.float32",
    ),
    "a map instead of a list": (
        lambda: pointwise(xs=t(2, 3, 4, 6)),
        "pointwise_conv: xs must be a list of tensors, got",
    ),
    "half-precision context": (
        lambda: context(down=[t(4, 4, 2, 2, **HALF)]),
        "context_head: down is torch.float16 but x torch.float32",
    ),
    "a string for out_channels": (
        lambda: conv(out_channels="4"),
        "patch_conv2d: out_channels must be an integer, got '4'",
    ),
    "out_channels beyond 64 bits": (
        lambda: conv(out_channels=2**70),
        "out_channels must be an integer, got 1180591",
    ),
    "a string for groups": (
        lambda: generate(groups="16"),
        "groups must be a list of integers, got '16'",
    ),
    "None for padding_mode": (lambda: conv(padding_mode=None), "patch_conv2d: padding_mode must be a string, got None"),
    "a number for halo": (lambda: block(halo=1), "patch_inverted_residual: halo must be a string, got 1"),
    "a string for residual": (
        lambda: encoder_block(residual="yes"),
        "mbconv: residual must be True or False, got 'yes'",
    ),
    "a NumPy array for x": (lambda: conv(t(2, 3, 4, 6).numpy()), "patch_conv2d: x must be a tensor, got numpy.ndarray"),
    "a NumPy array for bias": (
        lambda: conv(bias=t(4).numpy()),
        "patch_conv2d: bias must be a tensor or None, got numpy.ndarray",
    ),
    "a sparse map": (
        lambda: conv(t(2, 3, 4, 6).to_sparse()),
        "patch_conv2d: x must be a dense tensor, got torch.sparse_coo; call .to_dense()",
    ),
    "a float8 map": (
        lambda: conv(t(2, 3, 4, 6).to(torch.float8_e4m3fn)),
        "patch_conv2d: x must be floating point, got torch.float8_e4m3fn; convert it to float16, bfloat16,",
    ),
}

ERRORS = [
    pytest.param(*error, exception, id=name)
    for exception, table in ((ValueError, WRONG_VALUES), (TypeError, WRONG_TYPES))
    for name, error in table.items()
]


@pytest.mark.parametrize(("call", "message", "exception"), ERRORS)
def test_error_messages(call, message, exception):
    with pytest.raises(exception, match=re.escape(message)):
        call()


@pytest.mark.parametrize(
    "call",
    [
        generate,
        conv,
        block,
        batch_norm,
        level,
        from_signal,
        encoder_block,
        stem,
        normalise,
        pointwise,
        context,
        argmax,
        loss,
    ],
)
def test_calls_without_a_fault(call):
    """The default arguments are valid, so each call above has exactly one fault."""
    call()


@pytest.mark.parametrize("call", [conv, block, level])
def test_error_messages_while_tracing(call):
    """Fake tensors raise the same errors, so torch.compile and torch.export do too."""
    with torch.device("meta"), pytest.raises(ValueError, match="does not divide into"):
        call(
            torch.zeros(2, 3, 5, 6),
            **({"weights": t(2, 2, 3, 20, **META), "bias": t(4, **META)} if call is level else {}),
        )
