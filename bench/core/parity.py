"""Comparison of what is timed with the reference. A row that fails it gets no speed.

The reference is the plain module in float32 with the reference backend and TF32 off, on the same frames. The tolerances
are those of `hyperseg.runtime.parity`; this module adds labels, single operators, gradients, and steps of training.
Networks with random weights are the hard case: the scores of different classes are much closer together than in a
trained network, so more labels flip for the same error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from hyperseg.runtime import parity as networks
from hyperseg.runtime.parity import Tolerance


@dataclass(frozen=True)
class Parity:
    """Comparison of one callable with the reference.

    Attributes:
        passed: whether it is within the tolerance.
        reason: why it is not; empty if it is.
        max_abs: largest absolute error.
        relative: largest absolute error, relative to the largest reference value.
        rms: root mean square error, relative to the reference's root mean square.
        agreement: percentage of pixels with the reference's label.
        clear_agreement: the same over pixels where the reference is clear (see `Tolerance`).
        clear_pixels: percentage of pixels where it is clear.
    """

    passed: bool
    reason: str = ""
    max_abs: float | None = None
    relative: float | None = None
    rms: float | None = None
    agreement: float | None = None
    clear_agreement: float | None = None
    clear_pixels: float | None = None

    def message(self, what: str, when: str) -> str:
        """Return why ``what`` (a row, a peer) gets no speed."""
        return f"No speed for {what}: {when}, {self.reason}."


class BadReference(RuntimeError):
    """The reference itself is degenerate: every comparison with it would pass, or none."""


def check_reference(logits: torch.Tensor) -> dict[str, float]:
    """Return the spread of the reference's scores.

    Raises:
        BadReference: they vanish, are constant or not finite, or one class wins everywhere.
    """
    if not torch.isfinite(logits).all():
        raise BadReference("The reference network's scores are not finite: these weights cannot be used for a check.")
    std = logits.float().std().item()
    counts = torch.bincount(logits.argmax(1).flatten(), minlength=logits.shape[1])
    classes = int((counts > 0.001 * counts.sum()).sum())
    if std <= 1e-3:
        raise BadReference(
            f"The reference network's scores hardly vary (standard deviation {std:.1e}): every comparison would pass. "
            "Are the BatchNorm statistics those of a trained or calibrated network?"
        )
    if classes < 2:
        raise BadReference(
            "The reference network predicts a single class: every comparison of labels would pass. Use larger frames "
            "(--size) or other weights."
        )
    return {"std": std, "classes": classes, "max_abs": logits.abs().max().item()}


def clear_mask(reference: torch.Tensor, tolerance: Tolerance) -> torch.Tensor:
    top = reference.topk(2, dim=1).values
    return (top[:, 0] - top[:, 1]) > 6 * tolerance.relative_rms * reference.double().square().mean().sqrt()


def compare_labels(labels: torch.Tensor, reference: torch.Tensor, tolerance: Tolerance) -> Parity:
    """Compare uint8 labels [N, H, W] with reference scores [N, C, H, W]."""
    expected = reference.argmax(1)
    if labels.shape != expected.shape:
        return Parity(False, _other_shape(labels, expected))
    if labels.dtype != torch.uint8:
        return Parity(False, f"its labels are {labels.dtype}, not torch.uint8")
    same = labels.to(expected.device).long() == expected
    clear = clear_mask(reference, tolerance)
    pixels = int(clear.sum())
    agreement = 100 * same.double().mean().item()
    clear_agreement = 100 * same[clear].double().mean().item() if pixels else None
    reason = ""
    if agreement < tolerance.agreement:
        reason = f"only {agreement:.4f} % of the labels agree with the reference; {tolerance.agreement} % must"
    elif clear_agreement is not None and clear_agreement < tolerance.clear_agreement:
        reason = f"where the reference is clear, only {clear_agreement:.4f} % of the labels agree"
        reason += f"; {tolerance.clear_agreement} % must"
    return Parity(
        passed=not reason,
        reason=reason,
        agreement=agreement,
        clear_agreement=clear_agreement,
        clear_pixels=100 * pixels / clear.numel(),
    )


def compare_logits(logits: torch.Tensor, reference: torch.Tensor, tolerance: Tolerance) -> Parity:
    """Compare scores [N, C, H, W] with the reference's: their errors, and the labels they give."""
    logits = logits.to(reference.device, torch.float32)
    if logits.shape != reference.shape:
        return Parity(False, _other_shape(logits, reference))
    if not torch.isfinite(logits).all():
        return Parity(False, "its scores are not finite")
    labels = compare_labels(logits.argmax(1).to(torch.uint8), reference, tolerance)
    errors = networks.compare_logits(logits, reference)
    reason = _too_large(errors.relative_max, errors.relative_rms, tolerance, "score") or labels.reason
    return replace(
        labels,
        passed=not reason,
        reason=reason,
        max_abs=(logits - reference).abs().max().item(),
        relative=errors.relative_max,
        rms=errors.relative_rms,
    )


def compare_tensors(
    outputs: Sequence[torch.Tensor],
    references: Sequence[torch.Tensor],
    tolerance: Tolerance,
    rounded: Sequence[torch.Tensor] | None = None,
) -> Parity:
    """Compare an operator's outputs with the reference's, each tensor at its own scale.

    Args:
        rounded: for gradients, the reference's own outputs in the 16-bit type that is compared. Rounding moves hidden
            values across the kinks of their activation, where gradients jump, so that single values prove nothing:
            `loosened` widens the tolerance by these.
    """
    if len(outputs) != len(references):
        return Parity(False, f"it returned {len(outputs)} tensors, the reference {len(references)}")
    if not all(torch.isfinite(r).all() for r in references) or not any(r.any() for r in references):
        raise BadReference("The reference's output is zero or not finite: comparing with it would prove nothing.")
    allowed = [tolerance] * len(references)
    if rounded is not None:
        allowed = [loosened(tolerance, own, r) for own, r in zip(rounded, references, strict=True)]
    return worst([_compare_values(*each) for each in zip(outputs, references, allowed, strict=True)])


def loosened(tolerance: Tolerance, rounded: torch.Tensor, reference: torch.Tensor) -> Tolerance:
    """Return the tolerance of a gradient, which is rounded forward and backward.

    The rms error may be twice the usual one, or four times that of ``rounded`` (the reference's own output in 16-bit
    floats). A single error may be as large as the largest value, or four times the largest error of ``rounded``.
    """
    own = _compare_values(rounded, reference, replace(tolerance, relative_max=math.inf, relative_rms=math.inf))
    if own.relative is None or own.rms is None:
        return tolerance
    single, average = max(1.0, 4 * own.relative), max(2 * tolerance.relative_rms, 4 * own.rms)
    return replace(tolerance, relative_max=single, relative_rms=average)


@dataclass(frozen=True)
class StepTolerance:
    """Errors allowed to the first step of training, relative: of the loss, of all gradients together, and of each.

    Networks amplify rounding: in float32 the sums of another memory format alone change the gradients of the first
    layers by 1e-3.
    """

    loss: float
    gradients: float
    each: float


STEP_TOLERANCE = StepTolerance(loss=1e-4, gradients=1e-2, each=0.1)
# A tensor whose gradient is smaller than this share of the average may be as wrong as if it had this size: the gradient
# of a bias before a norm is 0, and only rounding is left of it.
LEAST_GRADIENT = 1e-3


def compare_step(
    loss: float,
    gradients: Sequence[torch.Tensor],
    reference: tuple[float, Sequence[torch.Tensor]],
    tolerance: StepTolerance,
) -> Parity:
    """Compare loss and gradients of a step with the reference's.

    Returns:
        ``max_abs`` is the relative error of the loss, ``rms`` that of all gradients as one vector, ``relative`` that of
        the worst tensor.
    """
    expected_loss, expected = reference
    if not (math.isfinite(expected_loss) and all(torch.isfinite(g).all() for g in expected)):
        raise BadReference("The reference's loss or gradients are not finite: comparing with them would prove nothing.")
    if not math.isfinite(loss) or not all(torch.isfinite(g).all() for g in gradients):
        return Parity(False, "its loss or gradients are not finite")
    errors = torch.stack([(a.double() - b.double()).norm() for a, b in zip(gradients, expected, strict=True)])
    sizes = torch.stack([b.double().norm() for b in expected])
    counts = torch.tensor([b.numel() for b in expected], dtype=torch.float64, device=sizes.device)
    least = LEAST_GRADIENT * sizes.norm() * (counts / counts.sum()).sqrt()
    rms = (errors.norm() / sizes.norm()).item()
    worst_of_all = (errors / sizes.maximum(least)).max().item()
    loss_error = abs(loss - expected_loss) / abs(expected_loss)
    reason = ""
    for what, found, allowed in (
        ("loss", loss_error, tolerance.loss),
        ("gradients together", rms, tolerance.gradients),
        ("worst gradient", worst_of_all, tolerance.each),
    ):
        if found > allowed:
            reason = f"the error of its {what} is {found:.1e} of the reference's; {allowed:.0e} is allowed"
            break
    return Parity(not reason, reason, max_abs=loss_error, relative=worst_of_all, rms=rms)


def loosened_step(own: Parity) -> StepTolerance:
    """Return the tolerance in 16-bit floats: four times the errors that the reference has in them, one at least."""
    least = STEP_TOLERANCE
    pairs = ((own.max_abs, least.loss), (own.rms, least.gradients), (own.relative, least.each))
    return StepTolerance(*(max(allowed, 4 * (error or 0.0)) for error, allowed in pairs))


def _compare_values(output: torch.Tensor, reference: torch.Tensor, tolerance: Tolerance) -> Parity:
    if output.shape != reference.shape:
        return Parity(False, _other_shape(output, reference))
    if not output.numel():  # the gradient of an argument that was not given
        return Parity(True)
    if not torch.isfinite(output).all():
        return Parity(False, "its values are not finite")
    difference, expected = output.double() - reference.double(), reference.double()
    tiny = torch.finfo(torch.float64).tiny  # against zeros, only zeros pass
    relative = (difference.abs().max() / expected.abs().max().clamp(min=tiny)).item()
    rms = (difference.square().mean() / expected.square().mean().clamp(min=tiny)).sqrt().item()
    reason = _too_large(relative, rms, tolerance, "value")
    return Parity(not reason, reason, difference.abs().max().item(), relative, rms)


def _other_shape(output: torch.Tensor, expected: torch.Tensor) -> str:
    return f"its output has shape {tuple(output.shape)}, the reference's {tuple(expected.shape)}"


def _too_large(relative: float, rms: float, tolerance: Tolerance, what: str) -> str:
    """Return why errors are too large; empty if they are not."""
    if relative > tolerance.relative_max:
        return f"its largest error is {relative:.1e} of the largest {what}; {tolerance.relative_max:.0e} is allowed"
    if rms > tolerance.relative_rms:
        return f"its root mean square error is {rms:.1e} of the {what}s'; {tolerance.relative_rms:.0e} is allowed"
    return ""


def worst(results: Sequence[Parity]) -> Parity:
    """Return the first comparison that failed, else the worst of each figure."""
    for result in results:
        if not result.passed:
            return result

    def extreme(pick: Callable[[list[float]], float], values: Iterable[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return pick(known) if known else None

    return Parity(
        passed=True,
        max_abs=extreme(max, (r.max_abs for r in results)),
        relative=extreme(max, (r.relative for r in results)),
        rms=extreme(max, (r.rms for r in results)),
        agreement=extreme(min, (r.agreement for r in results)),
        clear_agreement=extreme(min, (r.clear_agreement for r in results)),
        clear_pixels=extreme(min, (r.clear_pixels for r in results)),
    )
