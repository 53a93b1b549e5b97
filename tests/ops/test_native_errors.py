"""The native operators called directly: invalid arguments raise an error and are never read out of bounds."""

import pytest
import torch
from torch import Tensor

from hyperseg.ops import BACKENDS
from tests.ops.cases import BY_ID, Case, outputs
from tests.ops.test_parity import backward_arguments, flat

CPP = BACKENDS["cpp"]
MISSING = "; ".join(CPP.unavailable_reasons())
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING or "the extension is built")

F32 = torch.float32
CASES = {
    "generate_weights": "generate_weights-overlapping",
    "patch_conv2d": "patch_conv2d-kernel-3",
    "patch_inverted_residual": "patch_inverted_residual-own-patch-2",
    "patch_inverted_residual_batch_norm": "patch_inverted_residual_batch_norm-own-patch-2",
    "decoder_level": "decoder_level-own-signal",
    "mbconv": "mbconv-kernel-3-residual",
    "stem": "stem-repeated",
    "normalise_frames": "normalise_frames-padded",
    "pointwise_conv": "pointwise_conv-several",
    "upsample_argmax": "upsample_argmax-double",
    "upsample_cross_entropy": "upsample_cross_entropy-plain-weights",
}


def names(operator: str) -> list[str]:
    return [a.name for a in getattr(torch.ops.hyperseg_native, operator).default._schema.arguments]


def arguments(operator: str) -> dict:
    forward = operator.removesuffix("_backward")
    case = BY_ID[CASES[forward]]
    make = backward_arguments if operator != forward else Case.arguments
    return dict(zip(names(operator), make(case, F32, "cpu"), strict=True))


def call(operator: str, args: dict):
    return getattr(torch.ops.hyperseg_native, operator).default(*args.values())


def flattened(t: Tensor) -> Tensor:
    return t.flatten()


def double(t: Tensor) -> Tensor:
    return t.double()


def whole(t: Tensor) -> Tensor:
    return t.int()


def shorter(t: Tensor) -> Tensor:
    """Drop the last element of the last dimension."""
    return t[..., :-1]


def none(t: Tensor) -> Tensor:
    return t[:0]


def fewer(t: Tensor) -> Tensor:
    """Drop the last image."""
    return t[:-1]


# Per operator: argument, its new value or a function of the old one, and a pattern of the error message.
SIGNAL = [
    ("signal", flattened, r"signal must be \[N, C, fh, fw\]"),
    ("signal", whole, "signal must be float16"),
    ("signal", none, "every side of signal"),
    ("generators", [], "one offset, group count and size for each generator, got 0"),
    ("generators", lambda g: [t.double() for t in g], "a generator is Double but the signal Float"),
    ("generators", lambda g: [t.flatten() for t in g], "a generator must be"),
    ("generators", lambda g: [t[:, :0] for t in g], "number of a generator's columns"),
    ("offsets", [0, 0], "2 offsets"),
    ("offsets", [0, -1, 0], "reads signal channels -1"),
    ("offsets", [0, 5, 0], "but the signal has 12"),
    ("offsets", [0, 2**62, 0], "reads signal channels"),
    ("groups", [4, 0, 3], "groups must be 1 to"),
    ("groups", [4, 2**40, 3], "groups must be 1 to"),
    ("groups", [3, 2, 3], "do not divide into 3 groups"),
    ("sizes", [8, 0, 2], "size must be 1 to"),
    ("sizes", [9, 5, 2], "9 parameters are asked of a generator with only 8 rows"),
]
BLOCK = [
    ("x", flattened, r"x must be \[N, C, H, W\]"),
    ("x", whole, "x must be float16"),
    ("x", none, "every side of x"),
    ("x", double, "weights is Float but the map Double"),
    ("x", shorter, "does not divide into"),
    ("x", fewer, "weights are for 2 images but the map has 1"),
    ("x", lambda x: x[:, :-1], "parameters per patch, expected"),
    ("weights", flattened, r"weights must be \[N, fh, fw, P\]"),
    ("weights", shorter, "parameters per patch, expected"),
    ("out_channels", 0, "out_channels must be 1 to"),
    ("out_channels", -(2**63), "out_channels must be 1 to"),
    ("out_channels", 2**62, "out_channels must be 1 to"),
    ("out_channels", 5, "parameters per patch, expected"),
]
CONVOLUTION = [
    *BLOCK,
    ("bias", shorter, r"bias must be \[4\], got \[3\]"),
    ("bias", double, "bias is Double but x Float"),
    ("kernel_size", [3], "two numbers each"),
    ("kernel_size", [2, 3], "kernel sizes must be odd"),
    ("kernel_size", [-1, 3], "kernel_size must be 1 to"),
    ("kernel_size", [1, 3], "parameters per patch, expected"),
    ("dilation", [1, 1, 1], "two numbers each"),
    ("dilation", [0, 1], "dilation must be 1 to"),
    ("dilation", [1, 2**23], "may reach at most"),
    ("dilation", [4, 1], "too small to reflect 4x1"),
    ("groups", 0, "groups must be 1 to"),
    ("groups", 2, "do not both divide into 2 groups"),
    ("padding_mode", "mirror", "padding_mode must be 'reflect'"),
]
RESIDUAL = [
    *BLOCK,
    ("hidden", 0, "hidden must be 1 to"),
    ("hidden", 6, "parameters per patch, expected"),
    ("halo", "none", "halo must be 'own' or 'neighbour', got 'none'"),
    ("x", lambda x: x[:, :, :1], "does not divide"),
]
LEVEL = [
    ("skip", flattened, "skip must be"),
    ("skip", whole, "skip must be float16"),
    ("skip", double, "is Float but skip Double"),
    ("skip", fewer, "skip has 1 images but previous 2"),
    ("skip", shorter, "does not divide into 2x3 patches"),
    ("previous", flattened, "previous must be"),
    ("previous", none, "every side of previous"),
    ("previous", lambda p: torch.cat([p] * 9, 1), "parameters are asked of a generator with only 140"),
    ("signal", flattened, r"signal must be \[N, C, fh, fw\]"),
    ("signal", fewer, "the signal has 1 images but skip 2"),
    ("signal", lambda s: s[:, :-9], "but the signal has 11"),
    ("signal", lambda s: None, "give either signal and generator, or weights"),
    ("weights", torch.zeros(2, 2, 3, 140), "give either signal and generator, or weights"),
    ("generator", lambda g: None, "a signal needs a generator"),
    ("generator", flattened, "a generator must be"),
    ("generator", lambda g: g[:-4], "parameters are asked"),
    ("generator", double, "a generator is Double"),
    ("bias", shorter, r"bias must be \[17\], got \[16\]"),
    ("offset", -1, "reads signal channels -1"),
    ("groups", 0, "groups must be 1 to"),
    ("groups", 3, "do not divide into 3 groups"),
    ("out_channels", 0, "out_channels must be 1 to"),
    ("hidden", -1, "hidden must be 0 to"),
    ("halo", "", "halo must be"),
]
LOSS = [
    ("logits", flattened, "logits must be"),
    ("logits", whole, "logits must be float16"),
    ("logits", none, "every side of logits"),
    ("labels", flattened, r"labels must be int64 or uint8 \[N, H, W\], got Long"),
    ("labels", whole, "labels must be int64 or uint8"),
    ("labels", fewer, "labels are for 1 images but logits for 2"),
    ("labels", lambda t: t[:, :0], "a side of labels"),
]
GRADIENT = [
    ("grad", flattened, "grad must be"),
    ("grad", shorter, "grad must be"),
    ("grad", double, "grad is Double"),
]
ENCODER_BLOCK = [
    ("x", flattened, r"x must be \[N, C, H, W\]"),
    ("x", whole, "x must be float16"),
    ("x", none, "every side of x"),
    ("x", double, "expand is Float but x Double"),
    ("x", lambda x: x[:, :-1], r"expand must be \[48, 7\], got \[48, 8\]"),
    ("expand", None, "give expand and expand_bias, or neither"),
    ("expand_bias", shorter, r"expand_bias must be \[48\], got \[47\]"),
    ("depthwise", flattened, r"depthwise must be \[hidden, size, size\]"),
    ("depthwise", shorter, r"depthwise must be \[48, 3, 3\], got \[48, 3, 2\]"),
    ("depthwise", none, "number of hidden channels must be 1 to"),
    ("depthwise", lambda t: t.repeat(1, 3, 3), "1x1 to 7x7 taps, got 9"),
    ("reduce", none, "number of squeezed channels must be 1 to"),
    ("gate", shorter, r"gate must be \[48, 3\], got \[48, 2\]"),
    ("project", flattened, r"project must be \[out, hidden\]"),
    ("project", double, "project is Double but x Float"),
    ("project_bias", whole, "project_bias is Int but x Float"),
    ("stride", 0, "stride must be 1 to"),
    ("stride", 2, "residual adds x to the result"),
    ("padding", [1, 1], "padding must be left, right, top and bottom, got 2 numbers"),
    ("padding", [1, 1, 3, 1], "padding must be 0 to 2, got 3"),
    ("padding", [1, 1, -1, 1], "padding must be 0 to 2, got -1"),
    ("padding", [1, 0, 1, 1], "residual adds x to the result"),
]
STEM = [
    ("frames", flattened, r"frames must be \[N, H, W, 3\]"),
    ("frames", shorter, r"frames must be \[N, H, W, 3\], got \[2, 9, 13, 2\]"),
    ("frames", whole, "frames must be uint8, got Int"),
    ("frames", none, "every side of frames"),
    ("scale", double, "scale must be Float for this weight, got Double"),
    ("scale", shorter, r"scale must be \[3\], got \[2\]"),
    ("shift", whole, "shift must be Float for this weight, got Int"),
    ("shift", shorter, r"shift must be \[3\], got \[2\]"),
    ("weight", flattened, r"weight must be \[C, 3, size, size\]"),
    ("weight", shorter, r"weight must be \[C, 3, size, size\], got \[8, 3, 3, 2\]"),
    ("weight", whole, "weight must be float16"),
    ("weight", none, "number of channels must be 1 to"),
    ("weight", lambda t: t.repeat(1, 1, 3, 3), "1x1 to 7x7 taps, got 9"),
    ("bias", double, "bias is Double but weight Float"),
    ("bias", shorter, r"bias must be \[8\], got \[7\]"),
    ("height", 8, "the padded image, 8x32, must be at least as large as the frames, 9x13"),
    ("width", 2**40, "width must be 1 to"),
    ("stride", 0, "stride must be 1 to"),
    ("padding", [1, 1], "padding must be left, right, top and bottom, got 2 numbers"),
    ("padding", [1, 1, 3, 1], "padding must be 0 to 2, got 3"),
    ("padding", [1, 1, -1, 1], "padding must be 0 to 2, got -1"),
]
FRAMES = [
    ("frames", flattened, r"frames must be \[N, H, W, 3\]"),
    ("frames", lambda f: f.int(), "frames must be uint8"),
    ("frames", none, "every side of frames"),
    ("scale", shorter, r"scale must be \[3\], got \[2\]"),
    ("shift", double, "shift must be Float for these images"),
    ("like", whole, "like must be float16"),
    ("height", 8, "the images, 8x32, must be at least as large as the frames, 9x13"),
    ("width", 2**40, "width must be 1 to"),
]
POINTWISE = [
    ("xs", [], "got 0 maps, 3 weights"),
    ("xs", lambda xs: [xs[0].flatten(), *xs[1:]], r"x must be \[N, C, H, W\]"),
    ("xs", lambda xs: [*xs[:2], xs[2].double()], "x is Double but the first x Float"),
    ("xs", lambda xs: [xs[0][:, :-1], *xs[1:]], r"weight must be \[out, 5\], got \[10, 6\]"),
    ("weights", lambda ws: [w.double() for w in ws], "weight is Double but x Float"),
    ("weights", lambda ws: [ws[0][:0], *ws[1:]], "the number of outputs must be 1 to"),
    ("biases", lambda bs: [bs[0][:-1], *bs[1:]], r"bias must be \[10\], got \[9\]"),
    ("activations", ["none", "none"], "2 activations"),
    ("activations", ["none", "gelu", "relu"], "activation must be 'none', 'relu' or 'silu', got 'gelu'"),
]
STATISTICS = ("scale", "shift", "mean", "variance")
WRONG = {
    "generate_weights": SIGNAL,
    "generate_weights_backward": [*SIGNAL, *GRADIENT],
    "patch_conv2d": CONVOLUTION,
    "patch_conv2d_backward": [*CONVOLUTION, *GRADIENT],
    "patch_inverted_residual": [*RESIDUAL, ("bias", shorter, "bias must be"), ("bias", whole, "bias is Int")],
    "patch_inverted_residual_backward": [*RESIDUAL, ("bias", shorter, "bias must be"), *GRADIENT],
    "patch_inverted_residual_batch_norm": [
        *RESIDUAL,
        *[(name, shorter, rf"{name} must be \[14\], got \[13\]") for name in STATISTICS[:2]],
        *[(name, whole, f"{name} must be float16") for name in STATISTICS[:2]],
    ],
    "patch_inverted_residual_batch_norm_backward": [
        *RESIDUAL,
        *[(name, shorter, rf"{name} must be \[14\], got \[13\]") for name in STATISTICS],
        *[(name, whole, f"{name} must be float16") for name in STATISTICS],
        *GRADIENT,
    ],
    "decoder_level": LEVEL,
    "decoder_level_backward": [*LEVEL, *GRADIENT],
    "mbconv": ENCODER_BLOCK,
    "stem": STEM,
    "normalise_frames": FRAMES,
    "pointwise_conv": POINTWISE,
    "upsample_argmax": [
        ("logits", flattened, "logits must be"),
        ("logits", whole, "logits must be float16"),
        ("height", 0, "at least 1x1"),
        ("width", 2**40, "at most 2.24 pixels"),
    ],
    "upsample_cross_entropy": [
        *LOSS,
        ("bootstrap", -1, "bootstrap must be 0"),
        ("weight", shorter, r"weight must be \[5\], got \[4\]"),
        ("weight", double, "weight must be Float, got Double"),
        ("weight", whole, "weight must be Float, got Int"),
    ],
    "upsample_cross_entropy_backward": [
        *LOSS,
        ("grad", double, "grad must be one Float"),
        ("grad", lambda g: g.expand(2), "grad must be one Float"),
        ("weights", shorter, r"weights must be \[2, 11, 13\], got \[2, 11, 12\]"),
        ("weights", double, "weights must be Float"),
    ],
}


@pytest.mark.parametrize(
    ("operator", "name", "change", "message"),
    [
        pytest.param(operator, name, change, message, id=f"{operator}-{i}-{name}")
        for operator, table in WRONG.items()
        for i, (name, change, message) in enumerate(table)
    ],
)
def test_invalid_arguments_raise_an_error(operator, name, change, message):
    args = arguments(operator)
    args[name] = change(args[name]) if callable(change) else change
    with pytest.raises(RuntimeError, match=f"{operator}: .*({message})"):
        call(operator, args)


@pytest.mark.parametrize("operator", WRONG)
def test_every_dimension_of_every_tensor(operator):
    """Shorten, double or remove each dimension. The call raises an error, or all its outputs are finite.

    With fewer classes than the labels have, the gradient is NaN.
    """
    errors = 0
    for name, value in arguments(operator).items():
        for dim in range(value.dim() if isinstance(value, Tensor) else 0):
            for changed in (
                value.narrow(dim, 0, value.shape[dim] - 1),
                torch.cat([value] * 2, dim),
                value.select(dim, 0),
            ):
                args = arguments(operator) | {name: changed}
                try:
                    results = call(operator, args)
                except RuntimeError as error:
                    assert f"{operator}: " in str(error)  # noqa: PT017 - whether it is raised is not known
                    errors += 1
                else:
                    if (operator, name, dim) == ("upsample_cross_entropy_backward", "logits", 1):
                        results = results.nan_to_num(nan=0)
                    assert all(t.isfinite().all() for t in flat(outputs(results)))
    assert errors or operator == "pointwise_conv"  # which has lists


def test_every_native_operator_is_tested():
    composed = {"decoder_level_argmax", "mbconv_chain"}  # they call operators that are tested here
    assert set(WRONG) == set(CPP.supported) - composed
