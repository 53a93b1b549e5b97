"""Tolerances of operators against the float64 reference, per dtype.

Errors are relative to the root mean square of the expected values, so no tolerance depends on a test's scale.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tolerance:
    """Bounds on the largest, root mean square and median error."""

    largest: float
    rms: float
    median: float


# A unit in the last place is 2e-16, 1e-7, 1e-3 and 8e-3. Summing up to 600 terms in another order costs a few of them
# in the worst element. 16-bit floats are also rounded between the steps of the reference (expand, depthwise, project).
# Each bound is two to five times the largest error of the reference itself over all cases.
FORWARD = {
    torch.float64: Tolerance(1e-11, 1e-13, 1e-13),
    torch.float32: Tolerance(2e-5, 2e-6, 1e-6),
    torch.float16: Tolerance(2e-2, 2e-3, 1e-3),
    torch.bfloat16: Tolerance(1.5e-1, 1.5e-2, 1e-2),
}

# If rounding moves a value across a corner of ReLU or ReLU6, its gradient switches on or off. In these cases this never
# happens in float32; in 16-bit floats it happens to about one value in a hundred. There the median is the strict
# bound, and the other two only check the order of magnitude.
GRADIENT = {
    torch.float64: Tolerance(1e-10, 1e-12, 1e-13),
    torch.float32: Tolerance(5e-5, 5e-6, 1e-6),
    torch.float16: Tolerance(8, 0.5, 4e-3),
    torch.bfloat16: Tolerance(8, 1.0, 5e-2),
}


def assert_close(name: str, actual: Tensor, expected: Tensor, tolerance: Tolerance) -> None:
    """Assert equal shapes, values within the tolerance and equal infinities. NaN on either side is a failure."""
    assert actual.shape == expected.shape, f"{name}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    actual, expected = actual.detach().cpu().double(), expected.detach().cpu().double()
    assert not expected.isnan().any(), f"{name}: the expected values have NaN"
    assert not actual.isnan().any(), f"{name}: {int(actual.isnan().sum())} of {actual.numel()} values are NaN"
    finite = expected.isfinite()
    assert torch.equal(actual[~finite], expected[~finite]), f"{name}: infinities differ"
    error, expected = (actual - expected)[finite].abs(), expected[finite]
    if not expected.numel():
        return
    scale = expected.square().mean().sqrt().item() or 1.0
    found = Tolerance(*((e.item() / scale) for e in (error.max(), error.square().mean().sqrt(), error.median())))
    within = all(getattr(found, part) <= getattr(tolerance, part) for part in ("largest", "rms", "median"))
    assert within, f"{name}: errors {found} exceed {tolerance}"
