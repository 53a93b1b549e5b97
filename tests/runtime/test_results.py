"""Results of an engine are ordinary tensors, and the settings around a call do not change them."""

import contextlib
import functools

import pytest
import torch
import torch.nn.functional as F

from hyperseg.models import create_model, probe_frames
from hyperseg.runtime import Engine, build_engine
from tests.models.networks import network

S = "hyperseg-s-camvid"
SIZE = (33, 57)
FRAMES = probe_frames(1, SIZE, seed=3)

# By name, a call of an engine.
SCOPES = {
    "frame": lambda engine: engine(FRAMES),
    "host": lambda engine: engine.from_host(FRAMES),
    "logits": lambda engine: engine.logits(FRAMES),
    "normalise": lambda engine: engine.normalise(FRAMES),
    "network": lambda engine: engine.network(engine.normalise(FRAMES)),
    "labels": lambda engine: engine.labels(engine.normalise(FRAMES)),
}
scopes = pytest.mark.parametrize("scope", SCOPES)


@pytest.fixture(scope="module", params=[S, "hyperseg-l-voc"])
def engine(request) -> Engine:
    return build_engine(network(request.param), SIZE, device="cpu", check=False)


@scopes
def test_results_are_ordinary_tensors(scope, engine):
    result, again = SCOPES[scope](engine), SCOPES[scope](engine)
    assert type(result) is torch.Tensor
    assert not result.is_inference()
    assert not result.requires_grad
    result[:, 0] = 7
    assert (result[:, 0] == 7).all()
    part = result[..., 1:]
    part += 1
    assert part._base is not None
    assert not torch.equal(result, again)
    assert torch.equal(SCOPES[scope](engine), again), "what the caller wrote must not reach the engine"


def test_results_go_into_a_loss(engine):
    logits = engine.logits(FRAMES)
    student = torch.randn(logits.shape, requires_grad=True)
    loss = F.kl_div(student.log_softmax(1), logits.softmax(1), reduction="batchmean")
    (loss + F.cross_entropy(student, engine(FRAMES).long())).backward()
    assert student.grad.isfinite().all()


@contextlib.contextmanager
def setting(change, undo):
    change()
    try:
        yield
    finally:
        undo()


def default_dtype(dtype: torch.dtype):
    return setting(lambda: torch.set_default_dtype(dtype), lambda: torch.set_default_dtype(torch.float32))


def default_device(device: str):
    return setting(lambda: torch.set_default_device(device), lambda: torch.set_default_device(None))


def matmul_precision(precision: str):
    return setting(
        lambda: torch.set_float32_matmul_precision(precision), lambda: torch.set_float32_matmul_precision("highest")
    )


def deterministic():
    return setting(lambda: torch.use_deterministic_algorithms(True), lambda: torch.use_deterministic_algorithms(False))


CONTEXTS = {
    "autocast to bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast to float16": lambda: torch.autocast("cpu", torch.float16),
    "default dtype float64": lambda: default_dtype(torch.float64),
    "default dtype bfloat16": lambda: default_dtype(torch.bfloat16),
    "default device meta": lambda: default_device("meta"),
    "inside torch.device": lambda: torch.device("meta"),
    "inference mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "matmul precision high": lambda: matmul_precision("high"),
    "matmul precision medium": lambda: matmul_precision("medium"),
    "deterministic algorithms": deterministic,
}
contexts = pytest.mark.parametrize("context", CONTEXTS)


@contexts
def test_settings_around_a_call(context, engine):
    expected = {scope: call(engine) for scope, call in SCOPES.items()}
    with CONTEXTS[context]():
        found = {scope: call(engine) for scope, call in SCOPES.items()}
    for scope, value in expected.items():
        assert torch.equal(found[scope], value), scope


@functools.cache
def compared() -> Engine:
    return build_engine(network(S), SIZE, device="cpu")


@contexts
def test_settings_around_building(context):
    """Also around the comparison with the module, which would fail or, worse, compare with an inexact one."""
    expected = compared()
    with CONTEXTS[context]():
        built = build_engine(network(S), SIZE, device="cpu")
    assert torch.equal(built.logits(FRAMES), expected.logits(FRAMES))
    assert torch.equal(built(FRAMES), expected(FRAMES))
    assert built.parity == expected.parity


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_16_bit_engines_inside_autocast(dtype):
    """To the other of the two dtypes."""
    engine = build_engine(network(S), SIZE, dtype=dtype, device="cpu", check=False)
    expected = engine.logits(FRAMES)
    with torch.autocast("cpu", torch.bfloat16 if dtype == torch.float16 else torch.float16):
        assert torch.equal(engine.logits(FRAMES), expected)


class Tagged(torch.Tensor):
    """A subclass as of torchvision's images: operations on it return it."""


def test_inputs_of_other_kinds(engine):
    expected, images = engine(FRAMES), engine.normalise(FRAMES)
    labels = engine.labels(images)
    tagged = engine(FRAMES.as_subclass(Tagged))
    assert type(tagged) is torch.Tensor
    assert torch.equal(tagged, expected)
    for other in (images.clone().requires_grad_(), torch.nn.Parameter(images), images.as_subclass(Tagged)):
        found = engine.labels(other)
        assert type(found) is torch.Tensor
        assert torch.equal(found, labels)
        logits = engine.network(other)
        assert type(logits) is torch.Tensor
        assert not logits.requires_grad
    assert torch.equal(engine.labels(images.contiguous()), labels)


def test_inputs_that_are_not_dense_or_not_here(engine):
    with pytest.raises(ValueError, match=r"takes frames on cpu or in host memory, got frames on meta; move them there"):
        engine(FRAMES.to("meta"))
    with pytest.raises(ValueError, match=r"takes dense frames, got torch\.sparse_coo; call \.to_dense\(\)"):
        engine(FRAMES.to_sparse())
    with pytest.raises(ValueError, match=r"takes images .* on cpu, got .* on meta"):
        engine.labels(engine.normalise(FRAMES).to("meta"))
    with pytest.raises(TypeError, match=r"takes a torch\.Tensor of images .*, got numpy\.ndarray; convert an"):
        engine.network(engine.normalise(FRAMES).numpy())


@pytest.mark.parametrize("context", [torch.inference_mode, torch.no_grad], ids=["inference_mode", "no_grad"])
def test_a_network_made_in_inference_mode_can_be_trained(context):
    with context():
        model = create_model(S)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    model.train()(torch.randn(2, 3, 64, 64)).square().mean().backward()
    optimizer.step()
    assert all(p.grad is not None for p in model.parameters())
