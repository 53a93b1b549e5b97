"""opcheck, torch.compile without graph breaks or recompilation, and torch.export: an operator is one graph node."""

import pytest
import torch
from torch import Tensor

from hyperseg import ops
from tests.ops.cases import TYPICAL, Case, block_weights, differentiable, level_weights, normal
from tests.ops.test_gradients import with_gradients
from tests.ops.test_memory import apply, channels_last, offset
from tests.ops.test_parity import backward_arguments

F32 = torch.float32
DIFFERENTIABLE = [c for c in TYPICAL if differentiable(c.operator)]
CHECKS = {
    "contiguous": lambda case: tuple(apply(offset, a) for a in case.arguments(F32)),
    "channels_last": lambda case: tuple(apply(channels_last, a) for a in case.arguments(F32)),
    "requires_grad": lambda case: with_gradients(case, case.arguments(F32))[0],
}


@pytest.fixture(autouse=True)
def reset():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("kind", CHECKS)
@pytest.mark.parametrize("case", TYPICAL, ids=lambda case: case.id)
def test_opcheck(case: Case, kind: str):
    operator = getattr(torch.ops.hyperseg, case.operator).default
    torch.library.opcheck(operator, CHECKS[kind](case))


@pytest.mark.parametrize("case", DIFFERENTIABLE, ids=lambda case: case.id)
def test_opcheck_backward(case: Case):
    operator = getattr(torch.ops.hyperseg, f"{case.operator}_backward").default
    torch.library.opcheck(operator, backward_arguments(case, F32, "cpu"))


# One module per public function, to compile and export as in a network. All dimensions of the first size differ,
# because torch.compile would guard on equal ones.

FIRST, SECOND, THIRD = (2, 7, 9), (8, 11, 10), (9, 5, 13)  # images, rows and columns of patches
SIGNAL, SKIP, PREVIOUS, OUT, HIDDEN = 12, 3, 4, 5, 6
INPUTS = 2 + SKIP + PREVIOUS


def inputs(n: int, fh: int, fw: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    h, w = 4 * fh, 4 * fw
    tensors = {
        "skip": normal(g, n, SKIP, h, w),
        "previous": normal(g, n, PREVIOUS, h // 2, w // 2),
        "signal": normal(g, n, SIGNAL, fh, fw),
        "pointwise": level_weights(g, (n, fh, fw), SKIP, 0, OUT),
        "block": block_weights(g, (n, fh, fw), SKIP, HIDDEN, OUT),
        "generator": normal(g, 140, SIGNAL // 4) / 2,
        "bias": normal(g, 2 * HIDDEN + OUT),
        "expand": normal(g, HIDDEN, SKIP),
    }
    frames = torch.randint(256, (n, h, w, 3), generator=g, dtype=torch.uint8)
    return tensors | {"labels": torch.randint(OUT, (n, h, w), generator=g), "frames": frames}


class GenerateWeights(torch.nn.Module):
    def forward(self, signal, generator):
        return ops.generate_weights(signal, [generator, generator], offsets=0, groups=4, sizes=[138, 9])


class PatchConv(torch.nn.Module):
    def forward(self, skip, pointwise):
        return ops.patch_conv2d(skip, pointwise, out_channels=OUT)


class Block(torch.nn.Module):
    def forward(self, skip, block, bias):
        return ops.patch_inverted_residual(skip, block, bias, hidden=HIDDEN, out_channels=OUT)


class TrainedBlock(torch.nn.Module):
    def forward(self, skip, block, bias):
        y, mean, variance = ops.patch_inverted_residual_batch_norm(
            skip, block, 1 + bias, bias, hidden=HIDDEN, out_channels=OUT, halo="neighbour"
        )
        return y + mean.sum() + variance.sum()


class Level(torch.nn.Module):
    def forward(self, skip, previous, signal, generator, bias):
        return ops.decoder_level(
            skip,
            previous,
            signal=signal,
            generator=generator,
            bias=bias,
            groups=4,
            out_channels=OUT,
            hidden=HIDDEN,
        )


class LevelLabels(torch.nn.Module):
    def forward(self, skip, previous, block):
        weights = torch.cat([block, block], -1)[..., : (2 + SKIP + PREVIOUS + 9 + OUT) * HIDDEN]
        bias = weights[0, 0, 0, : 2 * HIDDEN + OUT]
        return ops.decoder_level_argmax(skip, previous, weights=weights, bias=bias, out_channels=OUT, hidden=HIDDEN)


class EncoderBlock(torch.nn.Module):
    def forward(self, skip, expand):
        skip, expand = skip.detach(), expand.detach()  # mbconv has no gradient
        filters = expand[:, :1, None].expand(-1, 3, 3)
        return ops.mbconv(
            skip,
            expand,
            expand[:, 0],
            filters,
            expand[:, 1],
            expand.T,
            expand[0],
            expand,
            expand[:, 2],
            expand.T,
            expand[1],
            padding=(1, 1, 1, 1),
            residual=True,
        )


class EncoderBlocks(torch.nn.Module):
    def forward(self, skip, expand):
        skip, expand = skip.detach(), expand.detach()
        filters = expand[:, :1, None].expand(-1, 3, 3)
        matrices = expand.T, expand[0], expand, expand[:, 2], expand.T, expand[1]
        block = ops.EncoderBlock(expand, expand[:, 0], filters, expand[:, 1], *matrices, 1, (1, 1, 1, 1), True)
        return torch.cat([y.flatten() for y in ops.mbconv_chain(skip, [block, block._replace(residual=False)], [0])])


class Stem(torch.nn.Module):
    def forward(self, frames, expand):
        expand = expand.detach().float()
        size = (frames.shape[1] + 1, frames.shape[2] + 2)
        filters = expand[:, :, None, None].expand(-1, -1, 3, 3)
        return ops.stem(frames, expand[0], expand[1], filters, expand[:, 0], size=size, stride=2, padding=(0, 1, 0, 1))


class Normalise(torch.nn.Module):
    def forward(self, frames, expand):
        expand = expand.detach().float()
        size = (frames.shape[1] + 1, frames.shape[2] + 2)
        return ops.normalise_frames(frames, expand[0], expand[1], like=expand, size=size)


class Convolutions(torch.nn.Module):
    def forward(self, skip, expand):
        skip, expand = skip.detach(), expand.detach()
        xs, weights, biases = [skip, skip[:, :2]], [expand, expand[:, :2]], [expand[:, 0], expand[:, 1]]
        first, second = ops.pointwise_conv(xs, weights, biases, activations=["silu", "none"])
        return first + second


class Context(torch.nn.Module):
    def forward(self, skip, expand):
        skip, square = skip.detach(), expand[:SKIP].detach()
        taps = square[:, :, None, None].expand(-1, -1, 2, 2)
        up = torch.cat([square, square], 1)
        return ops.context_head(skip, square, square[0], [taps], [square[0]], [up], [square[1]])


class Labels(torch.nn.Module):
    def forward(self, previous):
        return ops.upsample_argmax(previous, (previous.shape[2] * 2, previous.shape[3] * 2))


class Loss(torch.nn.Module):
    def forward(self, previous, labels):
        return ops.upsample_cross_entropy(previous, labels % PREVIOUS, bootstrap=20)


MODULES = {
    "generate_weights": GenerateWeights,
    "patch_conv2d": PatchConv,
    "patch_inverted_residual": Block,
    "patch_inverted_residual_batch_norm": TrainedBlock,
    "decoder_level": Level,
    "decoder_level_argmax": LevelLabels,
    "mbconv": EncoderBlock,
    "mbconv_chain": EncoderBlocks,
    "stem": Stem,
    "normalise_frames": Normalise,
    "pointwise_conv": Convolutions,
    "context_head": Context,
    "upsample_argmax": Labels,
    "upsample_cross_entropy": Loss,
}
modules = pytest.mark.parametrize("name", MODULES)


def arguments(module: torch.nn.Module, *size: int) -> dict[str, Tensor]:
    names = module.forward.__code__.co_varnames[1 : module.forward.__code__.co_argcount]
    return {name: inputs(*size)[name] for name in names}


def output_and_gradients(module, given: dict[str, Tensor]) -> list[Tensor]:
    """Return the output and, if it is differentiable, the gradients of all inputs."""
    leaves = {k: t.clone().requires_grad_() if t.is_floating_point() else t for k, t in given.items()}
    y = module(**leaves)
    if not y.requires_grad:
        return [y]
    differentiated = [t for t in leaves.values() if t.requires_grad]
    return [y.detach(), *torch.autograd.grad(y.square().sum(), differentiated)]


def compare(compiled, module, *size: int) -> None:
    given = arguments(module, *size)
    actual, expected = output_and_gradients(compiled, given), output_and_gradients(module, given)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e)


@modules
def test_compiled_for_any_size(name):
    """Compile once; run three sizes forward and backward."""
    module = MODULES[name]()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    compare(compiled, module, *FIRST)
    with torch._dynamo.config.patch(error_on_recompile=True):
        compare(compiled, module, *SECOND)
        compare(compiled, module, *THIRD)


@modules
def test_compiled_for_one_size(name):
    module = MODULES[name]()
    compare(torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=False), module, 1, 2, 3)


@pytest.mark.slow
@modules
def test_compiled_by_inductor(name):
    module = MODULES[name]()
    compiled = torch.compile(module, fullgraph=True, dynamic=True)
    compare(compiled, module, *FIRST)
    compare(compiled, module, *SECOND)


@modules
def test_exported(name):
    """The exported graph has one node per operator."""
    module = MODULES[name]()
    given = arguments(module, 1, 2, 3)
    program = torch.export.export(module, (), given)
    nodes = [n for n in program.graph.nodes if str(n.target).startswith("hyperseg.")]
    assert [str(n.target) for n in nodes] == [f"hyperseg.{name}.default"]
    torch.testing.assert_close(program.module()(**given), module(**given))


@modules
def test_exported_for_any_size(name):
    module = MODULES[name]()
    given = arguments(module, *FIRST)
    spatial = {k: (1, 2) if k in ("labels", "frames", "pointwise", "block") else (2, 3) for k in given}
    shapes = {k: dict.fromkeys(spatial[k], torch.export.Dim.AUTO) if given[k].dim() > 2 else None for k in given}
    program = torch.export.export(module, (), given, dynamic_shapes=shapes)
    other = arguments(module, FIRST[0], *SECOND[1:])
    torch.testing.assert_close(program.module()(**other), module(**other))


def test_every_operator_has_a_module():
    assert set(MODULES) == {case.operator for case in TYPICAL}
    assert {n for n in ops.OPERATORS if not n.endswith("_backward")} == set(MODULES)
