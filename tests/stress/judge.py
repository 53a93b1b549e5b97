"""Run one call on a backend and compare its outputs and gradients with what the error analysis allows."""

import contextlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from hyperseg.ops import BackendError, _arguments, _layout, reference, use_backend
from tests.ops.cases import LABELLING, outputs
from tests.stress import bounds
from tests.stress.bounds import Bounded
from tests.stress.draw import Call, lay_out

TRUST = 1e-12  # of float64 itself


@dataclass
class Verdict:
    """The errors of a call in units of their bounds, by output, and what is wrong."""

    errors: dict[str, float] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    compared: bool = True


def judge(call: Call, backend: str) -> Verdict:
    torch.set_flush_denormal(call.flush)
    try:
        return _illegal(call, backend) if call.illegal else _legal(call, backend)
    finally:
        torch.set_flush_denormal(False)


def operator(call: Call):
    return getattr(torch.ops.hyperseg, call.operator).default


def _illegal(call: Call, backend: str) -> Verdict:
    verdict = Verdict(compared=False)
    try:
        with use_backend(backend):
            _arguments.call(operator(call), *call.args)
    except (ValueError, TypeError, BackendError) as error:
        if len(str(error)) < 20:
            verdict.wrong.append(f"the message says too little: {error!r}")
    except Exception as error:
        verdict.wrong.append(f"an illegal call raised {type(error).__name__}: {str(error)[:300]}")
    else:
        verdict.wrong.append("an illegal call returned a result")
    return verdict


def _legal(call: Call, backend: str) -> Verdict:
    verdict = Verdict()
    try:
        with use_backend(backend):
            found = run(call)
            again = with_threads(call) if call.threads and backend != "reference" else None
    except BackendError as error:
        if "does not support" not in str(error):
            raise
        return Verdict(compared=False)
    if again is not None:
        for name, value in found.items():
            if not same(value, again[name]):
                verdict.wrong.append(f"{name} depends on the number of threads")
    torch.set_flush_denormal(False)
    expected = analyse(call)
    # SiLU of minus infinity is NaN in PyTorch; a kernel for 16-bit floats may return minus infinity.
    silu = call.operator in ("stem", "mbconv", "mbconv_chain", "pointwise_conv")
    silu = silu and call.dtype in (torch.float16, torch.bfloat16)
    instead_of_nan = -torch.inf if silu else torch.nan
    for name, value in found.items():
        if name in expected:
            compare(verdict, name, value, expected[name], spreading(call, name, expected), instead_of_nan)
    if call.operator in LABELLING:
        compare_labels(verdict, found["output 0"], scores(call), call)
    if call.operator == "upsample_cross_entropy":
        compare_loss(verdict, call, found)
    return verdict


def tensors(args: list) -> list[Tensor]:
    return [t for a in args for t in (a if isinstance(a, list) else [a]) if isinstance(t, Tensor)]


def spreading(call: Call, name: str, expected: dict[str, Bounded]) -> Tensor | None:
    """Return where an output may be NaN although the reference's is not.

    In a backward pass a kernel may multiply an infinite weight by the zeros of a padding, so NaN may spread in an image
    with other values that are not finite. Infinite values in a batch norm make all of its statistics NaN or infinite,
    in some orders of summation.
    """
    norm = call.operator.endswith("batch_norm")
    value = expected[name].value
    if name.startswith("output"):
        return value.isinf() if norm else None
    odd = [~t.isfinite() for t in tensors(call.args) if t.is_floating_point()]
    odd += [~(e.value.isfinite() & e.error.isfinite()) for e in expected.values()]
    if not any(bool(t.any()) for t in odd):
        return None
    images = call.args[0].shape[0]
    if norm or value.dim() != 4:
        return torch.ones_like(value, dtype=torch.bool)
    mask = torch.zeros(images, dtype=torch.bool)
    for t in odd:
        mask |= t.flatten(1).any(1) if t.dim() == 4 and t.shape[0] == images else t.any()
    return mask[:, None, None, None].expand_as(value)


def with_threads(call: Call) -> dict[str, Tensor]:
    torch.set_num_threads(call.threads)
    try:
        return run(call)
    finally:
        torch.set_num_threads(1)


def same(a: Tensor, b: Tensor) -> bool:
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


# ---------------------------------------------------------------------------------------------------------------------
# The call, and the same call on bounded tensors


def leaves(call: Call, as_leaf) -> tuple[list, dict[str, Tensor]]:
    """Return the arguments with ``as_leaf`` applied to those that require gradients, and these by name."""
    args, found = list(call.args), {}
    for i in call.grads:
        if isinstance(args[i], list):
            args[i] = [as_leaf(t) for t in args[i]]
            found |= {f"gradient {i}.{j}": t for j, t in enumerate(args[i])}
        else:
            args[i] = as_leaf(args[i])
            found[f"gradient {i}"] = args[i]
    return args, found


def run(call: Call) -> dict[str, Tensor]:
    """Return the outputs and gradients of the call by name."""
    args, inputs = leaves(call, lambda t: t.detach().requires_grad_())
    results = outputs(operator(call)(*args))
    found = {f"output {i}": t.detach() for i, t in enumerate(results)}
    if inputs:
        gradients = torch.autograd.grad(results[0], list(inputs.values()), gradient_of(call, results[0]))
        found |= dict(zip(inputs, gradients, strict=True))
    return found


def gradient_of(call: Call, output: Tensor) -> Tensor:
    """Return the random gradient of the output."""
    generator = torch.Generator().manual_seed(output.numel())
    values = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output.dtype)
    if call.grad_layout == "zero":
        return torch.zeros_like(values)
    if call.grad_layout == "expanded" or not values.dim():
        return values.flatten()[:1].reshape([1] * values.dim()).expand(values.shape)
    return lay_out(random.Random(output.numel()), values, call.grad_layout)


@contextlib.contextmanager
def bounded_coordinates() -> Iterator[None]:
    with mock.patch.object(_layout, "coordinates", bounds.coordinates):
        yield


def bounded(call: Call, x):
    if isinstance(x, list) and x and isinstance(x[0], Tensor):
        return [bounded(call, t) for t in x]
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return x
    error = None
    if call.flush:
        size = x.detach().double().abs()
        error = torch.where(size < torch.finfo(bounds.accumulator(x.dtype)).tiny, size, torch.zeros_like(size))
    return bounds.exact(x, error)


def analyse(call: Call) -> dict[str, Bounded]:
    """Return what the call must return, by name, but for labels and the weights of the loss."""
    if call.operator in LABELLING:
        return {}
    if call.operator == "upsample_cross_entropy":
        return {}  # see compare_loss
    # Independent of memory layouts.
    call = Call(
        call.operator, call.dtype, [bounded(call, a) for a in call.args], call.notes, call.grads, call.grad_layout
    )
    args, inputs = leaves(call, lambda t: t.requires_grad_())
    with bounded_coordinates():
        results = outputs(getattr(reference, call.operator)(*args))
        found = {f"output {i}": t.detach() for i, t in enumerate(results)}
        if inputs:
            shape = torch.empty(results[0].shape, dtype=results[0].dtype)
            grad = bounds.exact(gradient_of(call, shape))
            gradients = torch.autograd.grad(results[0], list(inputs.values()), grad, allow_unused=True)
            found |= {k: g for k, g in zip(inputs, gradients, strict=True) if g is not None}
    return found


def scores(call: Call) -> Bounded:
    args = [bounded(call, a) for a in call.args]
    with bounded_coordinates():
        if call.operator == "upsample_argmax":
            return reference.resize_precisely(*args)
        level = reference.decoder_level(*args)
        return reference.resize_precisely(level, *level.shape[2:])


# ---------------------------------------------------------------------------------------------------------------------
# Comparisons


def compare(
    verdict: Verdict,
    name: str,
    actual: Tensor,
    expected: Bounded,
    spreads: Tensor | None = None,
    instead_of_nan: float = torch.nan,
) -> None:
    """Compare a tensor.

    Args:
        spreads: where NaN is right too.
        instead_of_nan: what is right too where NaN is expected.
    """
    if actual.shape != expected.shape:
        verdict.wrong.append(f"{name}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}")
        return
    if actual.dtype != expected.dtype:
        verdict.wrong.append(f"{name}: {actual.dtype}, expected {expected.dtype}")
    value, error, got = expected.value, expected.error, actual.double()
    known = error.isfinite()
    top = torch.finfo(actual.dtype).max
    if spreads is not None:
        known &= ~(got.isnan() & spreads & ~value.isnan())
    # Classes: NaN, infinities, and what overflows the dtype.
    nan = known & value.isnan()
    infinite = known & (value.isinf() | (value.abs() - error > top))
    maybe = known & value.isfinite() & ~infinite & (value.abs() + error > top)
    for what, wrong in (
        ("is not NaN", nan & ~got.isnan() & (got != instead_of_nan)),
        ("is not infinite", infinite & ~(got.isinf() & (got.sign() == value.sign()))),
        ("is NaN", maybe & got.isnan()),
        ("is not finite", known & value.isfinite() & ~infinite & ~maybe & ~got.isfinite()),
    ):
        if wrong.any():
            verdict.wrong.append(
                f"{name}: {place(wrong)} {what}: {got[wrong][0].item()}, expected {value[wrong][0].item()}, "
                f"{int(wrong.sum())} of {wrong.numel()}"
            )
    finite = known & value.isfinite() & got.isfinite()
    if not finite.any():
        return
    ratio = torch.zeros_like(value)
    ratio[finite] = (got - value)[finite].abs() / error[finite].clamp(min=1e-320)
    worst = ratio.max().item()
    verdict.errors[name] = worst
    if worst > 1:
        i = int(ratio.argmax())
        verdict.wrong.append(
            f"{name}: {place(ratio > 1)} {got.flatten()[i].item()}, expected {value.flatten()[i].item()} "
            f"± {error.flatten()[i].item():.3g} ({worst:.3g} times the bound), "
            f"{int((ratio > 1).sum())} of {ratio.numel()}"
        )


def place(mask: Tensor) -> str:
    return str(tuple(mask.nonzero()[0].tolist()))


def compare_labels(verdict: Verdict, labels: Tensor, scores: Bounded, call: Call) -> None:
    value, error = scores.value, scores.error
    if call.flush:  # also products and differences on the way
        error = error + 4 * torch.finfo(bounds.accumulator(scores.dtype)).tiny
    n, classes, h, w = value.shape
    if labels.dtype != torch.uint8 or labels.shape != (n, h, w):
        verdict.wrong.append(f"labels are {labels.dtype} {tuple(labels.shape)}")
        return
    if int(labels.max()) >= classes:
        verdict.wrong.append(f"label {int(labels.max())} of {classes} classes")
        return
    known = scores.spread.isfinite().all(1)
    index = labels.long()[:, None]
    # NaN is the largest score, the first of equals wins.
    nan = value.isnan()
    first = nan.double().argmax(1)
    wrong = known & nan.any(1) & (labels.long() != first)
    top = value.nan_to_num(nan=-float("inf")).amax(1)
    infinite = known & ~nan.any(1) & (top == float("inf"))
    wrong |= infinite & (labels.long() != (value == float("inf")).double().argmax(1))
    if wrong.any():
        verdict.wrong.append(
            f"labels: {place(wrong)} is not the first NaN or infinity, {int(wrong.sum())} of {wrong.numel()}"
        )
    usual = known & ~nan.any(1) & top.isfinite()
    chosen, slack = value.gather(1, index)[:, 0], error.gather(1, index)[:, 0]
    lower = torch.where(value.isfinite(), value - error, torch.full_like(value, -float("inf"))).amax(1)
    lost = torch.where(usual, lower - chosen - slack, torch.zeros_like(top))
    lost = lost.nan_to_num(nan=0.0, posinf=float("inf"))
    if (lost > 0).any():
        verdict.wrong.append(
            f"labels: {place(lost > 0)} another class is larger by {lost.max().item():.3g} more than its bound"
        )
    if call.operator == "upsample_argmax":
        logits = call.args[0]
        for c in range(1, min(classes, 40)):
            for lower_class in range(min(c, 3)):
                if torch.equal(logits[:, c], logits[:, lower_class]) and bool((labels[usual] == c).any()):
                    verdict.wrong.append(f"labels: class {c} won, but class {lower_class} has the same scores")
                    return


def pixel_losses(logits: Bounded, labels: Tensor, ignored: Tensor) -> Bounded:
    """Cross-entropy of each pixel, ``[N, H, W]``, for labels that are all classes or ignored."""
    scores = reference.resize_precisely(logits, *labels.shape[1:])
    return F.cross_entropy(scores, labels.long().masked_fill(ignored, -1), ignore_index=-1, reduction="none")


def class_weights(call: Call) -> Tensor:
    """Return the class weight of each pixel, ``[N, H, W]`` in float64, 0 where the label is ignored."""
    logits, labels, weight, ignore_index, *_ = call.args
    weight = torch.ones(logits.shape[1], dtype=torch.float64) if weight is None else weight.double()
    return reference.weights_of_labels(labels, weight, labels.long() == ignore_index)


def normalised(weights: Tensor) -> Tensor:
    total = weights.sum()
    return weights / total.where(total != 0, 1.0)


def compare_loss(verdict: Verdict, call: Call, found: dict[str, Tensor]) -> None:
    """Compare the loss, the weights of its pixels where they are certain, and the gradient for these weights."""
    logits, labels, _, ignore_index, bootstrap, threshold = call.args
    with torch.no_grad():
        losses = pixel_losses(bounded(call, logits), labels, labels.long() == ignore_index)
    of_label = class_weights(call).flatten(1)
    value, error = losses.value.flatten(1), losses.error.flatten(1)
    if call.flush or not value.isfinite().all() or error.isinf().any():
        nonfinite_loss(verdict, call, found, value, error)
        return
    unit = bounds.unit(losses.dtype)
    value, error = value * of_label, error * of_label + unit * (value * of_label).abs()
    n, pixels = value.shape
    rounding = bounds.summation(value.numel()) * unit
    if bootstrap:
        shares = reference.selection(value.view(labels.shape), bootstrap, threshold).flatten(1)
        expected, total = shares * of_label, (value * shares).sum()
        slack = error.amax() + rounding * value.abs().amax()
    else:
        expected = normalised(of_label)
        total = (losses.value.flatten(1) * expected).sum()
        slack = losses.error.amax() + 4 * rounding * losses.value.abs().amax()
    certain = torch.ones(n, dtype=torch.bool)
    if bootstrap:
        k = min(bootstrap, pixels)
        ranked, places = value.sort(1, descending=True)
        near = (value - threshold).abs() <= error
        many = (ranked[:, k] > threshold) if pixels > k else torch.zeros(n, dtype=torch.bool)
        cut = torch.where(many, torch.tensor(threshold, dtype=value.dtype), ranked[:, k - 1])
        # Values that rounding can make equal to the cut may share its weight.
        at_cut = error + error.gather(1, places[:, k - 1 : k])
        certain = ~near.any(1) & (((value - cut[:, None]).abs() <= at_cut).sum(1) <= (~many).long())
        # At the threshold another number of pixels may count.
        jump = (ranked.amax(1) - threshold).abs() * near.sum(1) / k
        slack = slack + jump.mean()
    compare(verdict, "output 0", found["output 0"], Bounded(total, slack, losses.dtype))
    unsure = ~certain[:, None].expand(n, pixels)
    eps = (8 * unit + (0 if bootstrap else 4 * rounding)) * expected + bounds.smallest(losses.dtype)
    allowed = torch.where(unsure, torch.full_like(eps, float("inf")), eps)
    compare(
        verdict,
        "output 1",
        found["output 1"],
        Bounded(expected.view(labels.shape), allowed.view(labels.shape), losses.dtype),
    )
    loss_gradient(verdict, call, found)


def nonfinite_loss(verdict: Verdict, call: Call, found: dict[str, Tensor], value: Tensor, error: Tensor) -> None:
    if not call.args[4] and not call.flush and error.isfinite().all():
        total = (value * normalised(class_weights(call)).flatten(1)).sum()
        expected = Bounded(total, torch.zeros_like(total), found["output 0"].dtype)
        # PyTorch's loss is NaN if any class has an infinite logit; a kernel's is infinite if that is another class.
        compare(verdict, "output 0", found["output 0"], expected, instead_of_nan=torch.inf)
        loss_gradient(verdict, call, found)


def loss_gradient(verdict: Verdict, call: Call, found: dict[str, Tensor]) -> None:
    if not call.grads:
        return
    logits, labels, *_ = call.args
    leaf = bounded(call, logits).requires_grad_()
    weights = found["output 1"].double()
    losses = pixel_losses(leaf, labels, weights == 0)
    scalar = float(gradient_of(call, found["output 0"]))
    grad = bounds.exact((weights * scalar).to(losses.dtype))
    (expected,) = torch.autograd.grad(losses, leaf, grad)
    compare(
        verdict, "gradient 0", found["gradient 0"], expected, spreading(call, "gradient 0", {"gradient 0": expected})
    )
