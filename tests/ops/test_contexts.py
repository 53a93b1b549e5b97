"""An operator's result depends on its arguments alone, whatever PyTorch's settings around the call are."""

import contextlib

import pytest
import torch

from tests.ops.cases import BY_ID, TYPICAL, Case, differentiable
from tests.ops.targets import Target, supported
from tests.ops.test_parity import backward_arguments, flat

DIFFERENTIABLE = [c for c in TYPICAL if differentiable(c.operator)]


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


CONTEXTS = {
    "autocast to bfloat16": lambda device: torch.autocast(device, torch.bfloat16),
    "autocast to float16": lambda device: torch.autocast(device, torch.float16),
    "default dtype float64": lambda device: default_dtype(torch.float64),
    "default dtype bfloat16": lambda device: default_dtype(torch.bfloat16),
    "default device meta": lambda device: torch.device("meta"),
    "inference_mode": lambda device: torch.inference_mode(),
    "no_grad": lambda device: torch.no_grad(),
}


def check(target: Target, operator: str, args: tuple) -> None:
    expected = flat(target.run(operator, args))
    for name, context in CONTEXTS.items():
        with context(target.device):
            found = flat(target.run(operator, args))
        for a, b in zip(found, expected, strict=True):
            assert (a.dtype, a.device) == (b.dtype, b.device), name
            assert torch.equal(a, b), name


@pytest.mark.parametrize(("target", "case"), supported(TYPICAL))
def test_forward(target: Target, case: Case):
    check(target, case.operator, case.arguments(torch.float32, target.device))


@pytest.mark.parametrize(("target", "case"), supported(DIFFERENTIABLE, "_backward"))
def test_backward(target: Target, case: Case):
    check(target, f"{case.operator}_backward", backward_arguments(case, torch.float32, target.device))


def test_gradients_inside_autocast():
    """Autograd, a compiled function, and a backward pass inside autocast."""
    x, weights, *rest = BY_ID["patch_conv2d-no-bias"].arguments(torch.float32)
    operator = torch.ops.hyperseg.patch_conv2d.default

    def gradients(run) -> list[torch.Tensor]:
        leaves = [x.clone().requires_grad_(), weights.clone().requires_grad_()]
        y = run(*leaves, *rest)
        y.square().sum().backward()
        return [y.detach(), *(leaf.grad for leaf in leaves)]

    expected = gradients(operator)
    for run in (operator, torch.compile(operator, backend="aot_eager", fullgraph=True)):
        with torch.autocast("cpu", torch.bfloat16):
            found = gradients(run)
        assert all(a.dtype == torch.float32 and torch.equal(a, b) for a, b in zip(found, expected, strict=True))
