"""Whether the callable being timed computes the network. No speed is printed for one that does not.

The reference is the plain module in float32 with the reference backend and TF32 off, on the same frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from hyperseg.runtime import parity as networks
from hyperseg.runtime.parity import Tolerance

# By name, as on the command line and in results. Random weights are the hard case: scores of different classes are much
# closer together than those of a trained network, so more labels flip for the same error.
TOLERANCES = {str(dtype).removeprefix("torch."): tolerance for dtype, tolerance in networks.TOLERANCES.items()}


@dataclass(frozen=True)
class Parity:
    """The comparison of one callable with the reference; `reason` is empty if it passed."""

    passed: bool
    reason: str = ""
    max_abs: float | None = None
    relative: float | None = None
    rms: float | None = None
    agreement: float | None = None
    clear_agreement: float | None = None
    clear_pixels: float | None = None

    def sentence(self, row: tuple[str, ...], when: str) -> str:
        """Why a row gets no speed."""
        mode, backend, scope = row
        return self.refusal(f"mode {mode}, backend {backend}, scope {scope}", when)

    def refusal(self, what: str, when: str) -> str:
        return f"No speed for {what}: {when}, {self.reason}."

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class BadReference(RuntimeError):
    """The reference itself is degenerate, so that comparing with it would prove nothing."""


def check_reference(logits: torch.Tensor) -> dict[str, float]:
    """Refuse a reference that anything would agree with: vanished, constant or exploded scores, a single class."""
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
        raise BadReference("The reference network answers with one class only: label agreement would prove nothing.")
    return {"std": std, "classes": classes, "max_abs": logits.abs().max().item()}


def clear_mask(reference: torch.Tensor, tolerance: Tolerance) -> torch.Tensor:
    top = reference.topk(2, dim=1).values
    return (top[:, 0] - top[:, 1]) > 6 * tolerance.relative_rms * reference.double().square().mean().sqrt()


def compare_labels(labels: torch.Tensor, reference: torch.Tensor, tolerance: Tolerance) -> Parity:
    """Labels [N, H, W] against reference scores [N, C, H, W]."""
    expected = reference.argmax(1)
    if labels.shape != expected.shape:
        return Parity(False, f"it answered with shape {tuple(labels.shape)}, not {tuple(expected.shape)}")
    if labels.dtype != torch.uint8:
        return Parity(False, f"its labels are {labels.dtype}, not torch.uint8")
    same = labels.to(expected.device).long() == expected
    clear = clear_mask(reference, tolerance)
    pixels = int(clear.sum())
    result = Parity(
        passed=True,
        agreement=100 * same.double().mean().item(),
        clear_agreement=100 * same[clear].double().mean().item() if pixels else None,
        clear_pixels=100 * pixels / clear.numel(),
    )
    if result.agreement < tolerance.agreement:
        reason = f"only {result.agreement:.4f} % of the labels agree with the reference; {tolerance.agreement} % must"
        return replace(result, passed=False, reason=reason)
    if result.clear_agreement is not None and result.clear_agreement < tolerance.clear_agreement:
        reason = f"where the reference is clear, only {result.clear_agreement:.4f} % of the labels agree"
        return replace(result, passed=False, reason=f"{reason}; {tolerance.clear_agreement} % must")
    return result


def compare_logits(logits: torch.Tensor, reference: torch.Tensor, tolerance: Tolerance) -> Parity:
    """Scores [N, C, H, W] against the reference's."""
    logits = logits.to(reference.device, torch.float32)
    if logits.shape != reference.shape:
        return Parity(False, f"it answered with shape {tuple(logits.shape)}, the reference {tuple(reference.shape)}")
    if not torch.isfinite(logits).all():
        return Parity(False, "its scores are not finite")
    difference = (logits - reference).double()
    labels = compare_labels(logits.argmax(1).to(torch.uint8), reference, tolerance)
    result = replace(
        labels,
        max_abs=difference.abs().max().item(),
        relative=(difference.abs().max() / reference.abs().max()).item(),
        rms=(difference.square().mean().sqrt() / reference.double().square().mean().sqrt()).item(),
    )
    return refuse_errors(result, tolerance, "score")


def compare_tensors(
    answers: Sequence[torch.Tensor],
    references: Sequence[torch.Tensor],
    tolerance: Tolerance,
    rounded: Sequence[torch.Tensor] | None = None,
) -> Parity:
    """What an operator answers, each tensor by its own scale, against the reference's.

    Args:
        rounded: what the reference itself answers in a half type, for gradients. Rounding takes hidden values across a
            bend of their activation, where gradients jump, so single values tell nothing: see `loosened`.
    """
    if len(answers) != len(references):
        return Parity(False, f"it answered with {len(answers)} tensors, the reference with {len(references)}")
    if not all(torch.isfinite(r).all() for r in references) or not any(r.any() for r in references):
        raise BadReference("The reference's answer is zero or not finite: comparing with it would prove nothing.")
    allowed = [tolerance] * len(references)
    if rounded is not None:
        allowed = [loosened(tolerance, own, r) for own, r in zip(rounded, references, strict=True)]
    return worst([_compare_values(*each) for each in zip(answers, references, allowed, strict=True)])


def loosened(tolerance: Tolerance, rounded: torch.Tensor, reference: torch.Tensor) -> Tolerance:
    """For gradients, which are rounded forth and back: twice the root mean square error, or four times that of these
    values; of a single one as much as the largest value.
    """
    own = _compare_values(rounded, reference, replace(tolerance, relative_max=math.inf, relative_rms=math.inf))
    if own.relative is None or own.rms is None:
        return tolerance
    return replace(
        tolerance,
        relative_max=max(1.0, 4 * own.relative),
        relative_rms=max(2 * tolerance.relative_rms, 4 * own.rms),
    )


def _compare_values(answer: torch.Tensor, reference: torch.Tensor, tolerance: Tolerance) -> Parity:
    if answer.shape != reference.shape:
        return Parity(False, f"it answered with shape {tuple(answer.shape)}, the reference {tuple(reference.shape)}")
    if not answer.numel():  # the gradient of an argument that was not given
        return Parity(True)
    if not torch.isfinite(answer).all():
        return Parity(False, "its values are not finite")
    difference, expected = answer.double() - reference.double(), reference.double()
    tiny = torch.finfo(torch.float64).tiny  # against zeros, only zeros are right
    result = Parity(
        passed=True,
        max_abs=difference.abs().max().item(),
        relative=(difference.abs().max() / expected.abs().max().clamp(min=tiny)).item(),
        rms=(difference.square().mean() / expected.square().mean().clamp(min=tiny)).sqrt().item(),
    )
    return refuse_errors(result, tolerance, "value")


def refuse_errors(result: Parity, tolerance: Tolerance, what: str) -> Parity:
    """The same comparison, failed if its errors are too large."""
    if result.relative > tolerance.relative_max:
        reason = (
            f"its largest error is {result.relative:.1e} of the largest {what}; {tolerance.relative_max:.0e} is allowed"
        )
        return replace(result, passed=False, reason=reason)
    if result.rms > tolerance.relative_rms:
        reason = (
            f"its root mean square error is {result.rms:.1e} of the {what}s'; {tolerance.relative_rms:.0e} is allowed"
        )
        return replace(result, passed=False, reason=reason)
    return result


def worst(results: list[Parity]) -> Parity:
    """The first that failed, else the figures of the worst over all inputs."""
    for result in results:
        if not result.passed:
            return result

    def extreme(name: str, pick: Any) -> Any:
        values = [getattr(r, name) for r in results if getattr(r, name) is not None]
        return pick(values) if values else None

    return Parity(
        passed=True,
        **{name: extreme(name, max) for name in ("max_abs", "relative", "rms")},
        **{name: extreme(name, min) for name in ("agreement", "clear_agreement", "clear_pixels")},
    )
