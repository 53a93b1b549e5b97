"""Gradients: compare with autograd through the reference and with finite differences."""

import pytest
import torch
from torch import Tensor

from hyperseg import ops
from hyperseg.ops import reference, use_backend
from tests.ops import oracle
from tests.ops.cases import (
    BATCH_NORM,
    BY_ID,
    DECODER_LEVEL,
    TYPICAL,
    Case,
    batch_norm,
    conv,
    differentiable,
    generators,
    level,
    loss,
    outputs,
    residual,
)
from tests.ops.targets import Target, skip_if_not_supported, supported
from tests.ops.test_parity import backward_arguments
from tests.tolerances import FORWARD, GRADIENT, assert_close

F64 = torch.float64
DIFFERENTIABLE = [c for c in TYPICAL if differentiable(c.operator)]
OTHERS = [
    *[c for c in DECODER_LEVEL if c not in DIFFERENTIABLE],
    *[
        BY_ID[f"upsample_cross_entropy-{name}"]
        for name in (
            "plain-all-ignored",
            "plain-uint8-weights-ignore-a-class",
            "plain-weights-of-zero",
            "bootstrap-all-ignored",
            "bootstrap-ties",
            "bootstrap-many-above",
            "bootstrap-weights-of-zero-below-0",
        )
    ],
    BY_ID["patch_conv2d-depthwise"],
    BY_ID["patch_conv2d-circular-kernel-5-groups-2"],
    BY_ID["generate_weights-surplus-rows"],
]


def with_gradients(case: Case, args: tuple, only: int | None = None) -> tuple[tuple, list[Tensor]]:
    """Return the arguments with leaves that require gradients (all, or only the one at ``only``), and these leaves."""
    leaves = []

    def as_leaf(value):
        if isinstance(value, list):
            return [as_leaf(v) for v in value]
        leaves.append(value.clone().requires_grad_())
        return leaves[-1]

    positions = differentiable(case.operator) if only is None else (only,)
    return tuple(as_leaf(a) if i in positions and a is not None else a for i, a in enumerate(args)), leaves


def backward(function, args: tuple, leaves: list[Tensor], seed: int = 0) -> list[Tensor]:
    y = outputs(function(*args))[0]
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(y)
    return list(torch.autograd.grad(y, leaves, grad))


def skip_if_either_pass_is_not_supported(target: Target, case: Case) -> None:
    skip_if_not_supported(target, case.operator, case.arguments(F64, target.device))
    skip_if_not_supported(target, f"{case.operator}_backward", backward_arguments(case, F64, target.device))


def check_gradients(target: Target, case: Case, only: int | None = None) -> None:
    operator = getattr(torch.ops.hyperseg, case.operator).default
    args = case.arguments(F64, target.device)
    skip_if_either_pass_is_not_supported(target, case)
    with use_backend(target.backend):
        actual = backward(operator, *with_gradients(case, args, only))
    expected = backward(getattr(reference, case.operator), *with_gradients(case, case.arguments(F64), only))
    assert actual
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert_close(f"gradient {i}", a, e, GRADIENT[F64])


@pytest.mark.parametrize(("target", "case"), supported([*DIFFERENTIABLE, *OTHERS], "_backward"))
def test_backward_matches_the_reference(target: Target, case: Case):
    check_gradients(target, case)


@pytest.mark.parametrize(
    ("target", "case"), supported([c for c in DIFFERENTIABLE if len(differentiable(c.operator)) > 1], "_backward")
)
def test_frozen_inputs(target: Target, case: Case):
    """Each input may be the only one that requires a gradient."""
    for only in differentiable(case.operator):
        if given(case, only):
            check_gradients(target, case, only)


def test_no_graph_is_recorded_if_no_input_requires_gradients():
    for case in DIFFERENTIABLE:
        for y in outputs(getattr(torch.ops.hyperseg, case.operator).default(*case.arguments(F64))):
            assert not y.requires_grad


# Small shapes: finite differences take two evaluations per element.
TINY = {
    "generate_weights": generators(2, 4, (1, 2), ((0, 4, 2, 6, 5), (1, 3, 1, 2, 2))),
    "patch_conv2d": conv(2, 2, 2, (1, 2), (2, 1), (1, 3), 1, (1, 1)),
    "patch_conv2d-groups": conv(1, 4, 2, (2, 1), (2, 3), (3, 3), 2, (1, 2), "zeros", bias=False),
    "patch_inverted_residual-own": residual(1, 2, 2, 2, (1, 2), (2, 2)),
    "patch_inverted_residual-neighbour": residual(1, 2, 2, 1, (2, 1), (1, 2), "neighbour", bias=False),
    "patch_inverted_residual_batch_norm-own": batch_norm(2, 2, 2, 2, (1, 2), (2, 2)),
    "patch_inverted_residual_batch_norm-neighbour": batch_norm(1, 2, 2, 2, (2, 2), (2, 2), "neighbour"),
    "decoder_level-pointwise": level(1, 1, 2, 2, 0, (1, 2), (2, 2), signal=(4, 1, 2, 2, 10)),
    "decoder_level-own": level(1, 1, 1, 2, 2, (1, 2), (2, 2), signal=(4, 0, 4, 2, 32)),
    "decoder_level-neighbour": level(1, 1, 1, 1, 2, (1, 2), (2, 2), halo="neighbour", size=(3, 1)),
    "decoder_level-first": level(1, 2, 0, 2, 0, (2, 1), (1, 2)),
    "upsample_cross_entropy-plain": loss(2, 3, (2, 3), (3, 5)),
    "upsample_cross_entropy-many": loss(2, 3, (2, 3), (3, 5), bootstrap=4, threshold=0.5),
    "upsample_cross_entropy-weights": loss(2, 3, (2, 3), (3, 5), weighted="some"),
    "upsample_cross_entropy-weights-few": loss(2, 3, (2, 3), (3, 5), bootstrap=9, threshold=5.0, weighted="all"),
    "upsample_cross_entropy-few": loss(2, 3, (2, 3), (3, 5), bootstrap=9, threshold=5.0),
}


@pytest.mark.parametrize(
    ("target", "case"), supported([Case(name.split("-")[0], name, build) for name, build in TINY.items()], "_backward")
)
def test_finite_differences(target: Target, case: Case):
    args = case.arguments(F64, target.device)
    skip_if_either_pass_is_not_supported(target, case)
    filled, leaves = with_gradients(case, args)
    operator = getattr(torch.ops.hyperseg, case.operator).default

    def function(*values):
        remaining = iter(values)
        positions = differentiable(case.operator)
        call = [
            a
            if a is None or i not in positions
            else [next(remaining) for _ in a]
            if isinstance(a, list)
            else next(remaining)
            for i, a in enumerate(filled)
        ]
        return outputs(operator(*call))[0]

    with use_backend(target.backend):
        assert torch.autograd.gradcheck(function, leaves, eps=1e-6, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize(("target", "case"), supported(BATCH_NORM))
def test_batch_statistics(target: Target, case: Case):
    """Mean and biased variance of each norm's input match the oracle and do not require gradients."""
    args = case.arguments(F64, target.device)
    skip_if_not_supported(target, case.operator, args)
    filled, _ = with_gradients(case, args)
    with use_backend(target.backend):
        y, mean, variance = torch.ops.hyperseg.patch_inverted_residual_batch_norm.default(*filled)
    assert (y.requires_grad, mean.requires_grad, variance.requires_grad) == (True, False, False)
    _, expected_mean, expected_variance = oracle.patch_inverted_residual_batch_norm(*case.arguments(F64))
    assert_close("mean", mean, expected_mean, FORWARD[F64])
    assert_close("variance", variance, expected_variance, FORWARD[F64])


def test_labels_require_no_gradient():
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    assert not ops.upsample_argmax(logits, (8, 8)).requires_grad


def test_pixel_weights_of_the_loss_require_no_gradient():
    args = BY_ID["upsample_cross_entropy-plain"].arguments(F64)
    value, weights = torch.ops.hyperseg.upsample_cross_entropy.default(args[0].requires_grad_(), *args[1:])
    assert (value.requires_grad, weights.requires_grad) == (True, False)


@pytest.mark.parametrize("case", DIFFERENTIABLE, ids=lambda case: case.id)
def test_second_derivatives_raise_an_error(case: Case):
    filled, leaves = with_gradients(case, case.arguments(F64))
    y = outputs(getattr(torch.ops.hyperseg, case.operator).default(*filled))[0]
    first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
    with pytest.raises(NotImplementedError, match=f"{case.operator}_backward: second derivatives"):
        sum(g.square().sum() for g in first).backward()


def test_every_differentiable_argument_is_given_in_some_case():
    arguments = {(c.operator, i) for c in DIFFERENTIABLE for i in differentiable(c.operator)}
    assert arguments == {(c.operator, i) for c in DIFFERENTIABLE for i in differentiable(c.operator) if given(c, i)}


def given(case: Case, position: int) -> bool:
    return case.arguments(F64)[position] is not None
