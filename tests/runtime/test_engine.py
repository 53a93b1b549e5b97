"""The engine: from frames to labels at one size, matching the module."""

import copy
import functools
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import hyperseg
from bench.core.calls import Recorder
from hyperseg.models import create_model, probe_frames, synthesize_weights
from hyperseg.ops import has_kernel
from hyperseg.ops._layout import resize_logits
from hyperseg.runtime import Engine, EngineError, FoldedNetwork, Parity, build_engine
from hyperseg.runtime import engine as engine_module
from hyperseg.runtime.arguments import DTYPES
from hyperseg.runtime.parity import TOLERANCES, compare_logits
from tests import golden
from tests.models.networks import NAMES, network, relative_rms

S = "hyperseg-s-camvid"
names = pytest.mark.parametrize("name", NAMES)
SIZES = [(33, 57), (64, 96), (65, 97), (100, 70)]

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


def normalised(frames, config):
    mean, std = (torch.tensor(values)[:, None, None] for values in (config.mean, config.std))
    return (frames.permute(0, 3, 1, 2).float() / 255 - mean) / std


def assert_same_labels(labels, logits, margin):
    """Check that the labels are the logits' argmax, except where the best two logits are closer than ``margin``."""
    labels, logits = labels.cpu().long(), logits.cpu().float()
    chosen = logits.gather(1, labels[:, None])[:, 0]
    assert (logits.amax(1) - chosen).max().item() <= margin


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@names
def test_labels_and_logits_match_the_module(name, size):
    model = network(name)
    engine = hyperseg.build_engine(model, size, device="cpu", batch=2)
    frames = probe_frames(2, size, seed=3)
    with torch.inference_mode():
        expected = model(normalised(frames, model.config))
    logits, labels = engine.logits(frames), engine(frames)
    assert (logits.dtype, tuple(logits.shape)) == (torch.float32, (2, model.config.num_classes, *size))
    assert relative_rms(logits, expected) < 1e-4
    assert (labels.dtype, tuple(labels.shape)) == (torch.uint8, (2, *size))
    assert_same_labels(labels, expected, 1e-3 * expected.abs().max().item())
    assert (labels == expected.argmax(1)).float().mean() > 0.99
    assert labels.unique().numel() > 1 or size == SIZES[0]
    # On some images the six levels of v0_1 amplify rounding, both in the module and in the engine.
    assert engine.parity.relative_rms < (1e-2 if name == "hyperseg-l-voc" else 1e-4)
    assert engine.parity.label_agreement > 0.99


@pytest.mark.parametrize("name", [S, "hyperseg-l-voc"])
def test_golden_weights(name):
    model = golden.golden_model(name).eval()
    engine = build_engine(model, (64, 64), device="cpu")
    x = golden.images()[:, :, :64, :64].contiguous()
    with torch.inference_mode():
        expected = model(x)
    assert relative_rms(F.interpolate(engine.network(x), size=(64, 64), mode="bilinear"), expected) < 1e-4
    assert_same_labels(engine.labels(x), expected, 1e-3 * expected.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@names
def test_16_bit_floats(name, dtype):
    model, size = network(name), (65, 70)
    engine = build_engine(model, size, dtype=dtype, device="cpu")
    frames = probe_frames(1, size, seed=3)
    with torch.inference_mode():
        expected = model(normalised(frames, model.config))
    assert engine.logits(frames).dtype == torch.float32
    assert 0 < relative_rms(engine.logits(frames), expected) < TOLERANCES[dtype].relative_rms
    assert engine.normalise(frames).dtype == dtype
    assert 1e-4 < engine.parity.relative_rms < TOLERANCES[dtype].relative_rms


def test_other_encoders_and_normalisation():
    model = create_model("hyperseg-s", num_classes=3, encoder="resnet18", mean=(0.5, 0.5, 0.5), std=(0.25, 0.5, 1.0))
    model = synthesize_weights(model).eval()
    engine = build_engine(model, (50, 70), device="cpu")
    frames = probe_frames(1, (50, 70), seed=3)
    with torch.inference_mode():
        expected = model(normalised(frames, model.config))
    torch.testing.assert_close(engine.normalise(frames), normalised(frames, model.config), rtol=1e-5, atol=1e-6)
    assert relative_rms(engine.logits(frames), expected) < 1e-4


@pytest.fixture(scope="module")
def engine():
    return build_engine(network(S), (40, 65), device="cpu")


def test_normalise(engine):
    frames = probe_frames(1, (40, 65))
    found = engine.normalise(frames)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, normalised(frames, network(S).config), rtol=1e-5, atol=1e-6)


def test_all_scopes_agree(engine):
    frames = probe_frames(1, (40, 65), seed=4)
    x = engine.normalise(frames)
    strided = engine.network(x)
    # 40x65 is padded to 64x65, and the network ends at half of that.
    assert strided.shape == (1, 12, 32, 32)
    labels, logits = engine(frames), engine.logits(frames)
    assert torch.equal(engine.from_host(frames), labels)
    assert_same_labels(labels, logits, 1e-4)
    # The stem adds up in another order for frames than for images.
    assert relative_rms(resize_logits(strided, 64, 65)[:, :, :40], logits) < 1e-4
    assert_same_labels(engine.labels(x), logits, 1e-3 * logits.abs().max().item())


@functools.cache
def unchecked(name: str) -> Engine:
    """Return an engine that tests share, built without the comparison."""
    return build_engine(network(name), (33, 57), device="cpu", check=False)


@names
def test_frames_go_through_the_stem(name, monkeypatch):
    """Frames are normalised separately only for a network whose last level reads them."""
    called, normalise = [], FoldedNetwork.normalise
    monkeypatch.setattr(FoldedNetwork, "normalise", lambda self, frames: called.append(1) or normalise(self, frames))
    with Recorder() as recorder:
        unchecked(name)(probe_frames(1, (33, 57)))
    fused, made = has_kernel("stem", "cpu"), [call.operator for call in recorder.calls]
    assert made.count("stem") == fused
    assert made.count("normalise_frames") == (fused and network(name).output_stride == 1)
    assert len(called) == (not fused)


@names
def test_a_last_level_at_full_size_returns_labels_directly(name):
    engine = unchecked(name)
    frames = probe_frames(1, (33, 57))
    whole = network(name).output_stride == 1
    for call in (lambda: engine(frames), lambda: engine.labels(engine.normalise(frames))):
        with Recorder() as recorder:
            labels = call()
        made = [c.operator for c in recorder.calls]
        assert (made.count("decoder_level_argmax"), made.count("upsample_argmax")) == (whole, not whole)
        assert_same_labels(labels, engine.logits(frames), 1e-3 * engine.logits(frames).abs().max().item())


def test_labels_that_do_not_match_the_logits_are_an_error(monkeypatch):
    decode = FoldedNetwork._decode

    def other_labels(self, features, head, images, labels):
        output = decode(self, features, head, images, labels)
        return output if labels is None else (output + 1) % 12

    monkeypatch.setattr(FoldedNetwork, "_decode", other_labels)
    with pytest.raises(
        EngineError, match=r"^Engine labels \(eager, float32, cpu\) do not match the engine's own logits"
    ):
        build_engine(network("hyperseg-l-camvid"), (64, 64), device="cpu")


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("name", [S, "hyperseg-l-voc"])
def test_frames_and_images_give_the_same_logits(name, dtype):
    size = (50, 75)
    engine = build_engine(network(name), size, dtype=dtype, device="cpu", check=False)
    frames = probe_frames(1, size, seed=3)
    strided = engine.network(engine.normalise(frames)).float()
    expected = resize_logits(strided, *engine.padded)[:, :, : size[0], : size[1]]
    assert relative_rms(engine.logits(frames), expected) < TOLERANCES[dtype].relative_rms


def test_frames_need_not_be_contiguous(engine):
    frames = probe_frames(1, (40, 65), seed=4)
    cut = torch.cat([frames, frames], 2)[:, :, :65]
    planar = frames.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    for view in (cut, planar):
        assert not view.is_contiguous()
        assert torch.equal(engine(view), engine(frames))


def test_outputs_are_not_overwritten(engine):
    first, second = probe_frames(1, (40, 65), seed=4), probe_frames(1, (40, 65), seed=5)
    labels, logits = engine(first), engine.logits(first)
    kept = labels.clone(), logits.clone()
    assert not torch.equal(engine(second), labels)
    engine.logits(second)
    assert torch.equal(labels, kept[0])
    assert torch.equal(logits, kept[1])


def byte(*shape):
    return torch.zeros(shape, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (
            torch.zeros(1, 40, 65, 3),
            r"takes uint8 frames \[1, 40, 65, 3\] \(RGB\), got float32 .* as they are, 0 to 255; .* engine\.labels",
        ),
        (torch.zeros(1, 3, 40, 65), r"got float32 \[1, 3, 40, 65\]; .* normalised already there is engine\.labels"),
        (byte(1, 40, 64, 3), r"got uint8 \[1, 40, 64, 3\]; build one for that size"),
        (byte(2, 40, 65, 3), r"got uint8 \[2, 40, 65, 3\]; build one for that size and batch"),
        (byte(40, 65, 3), r"got uint8 \[40, 65, 3\]; a single frame needs a batch dimension too: frames\[None\]"),
        (byte(1, 3, 40, 65), r"got uint8 \[1, 3, 40, 65\]; put the channels last: frames\.permute\(0, 2, 3, 1\)"),
        (byte(1, 40, 65, 4), r"got uint8 \[1, 40, 65, 4\]; leave out the fourth channel: frames\[\.\.\., :3\]"),
        (byte(40, 65), r"got uint8 \[40, 65\]; bring them into that form"),
    ],
    ids=["float", "float-planar", "size", "batch", "one-frame", "planar", "alpha", "grey"],
)
@pytest.mark.parametrize("scope", ["__call__", "from_host", "logits"])
def test_invalid_frames(scope, frames, message, engine):
    with pytest.raises(ValueError, match=message):
        getattr(engine, scope)(frames)


def test_the_advice_about_invalid_frames_works(engine):
    frames = probe_frames(1, (40, 65), seed=4)
    expected = engine(frames)
    alpha = torch.cat([frames, frames[..., :1]], 3)
    planar = frames.permute(0, 3, 1, 2).contiguous()
    for mended in (planar.permute(0, 2, 3, 1), frames[0][None], alpha[..., :3], torch.from_numpy(frames.numpy())):
        assert torch.equal(engine(mended), expected)


@pytest.mark.parametrize("scope", ["__call__", "from_host", "logits"])
def test_frames_that_are_not_a_tensor(scope, engine):
    with pytest.raises(TypeError, match=r"got numpy\.ndarray; convert an array with torch\.from_numpy\(frames\)"):
        getattr(engine, scope)(probe_frames(1, (40, 65)).numpy())


@pytest.mark.parametrize(
    "x",
    [torch.zeros(1, 3, 40, 64), torch.zeros(1, 3, 40, 65).half(), torch.zeros(3, 40, 65), torch.zeros(2, 3, 40, 65)],
    ids=["size", "dtype", "3d", "batch"],
)
@pytest.mark.parametrize("scope", ["network", "labels"])
def test_invalid_images(scope, x, engine):
    with pytest.raises(ValueError, match=r"This engine takes images \[1, 3, 40, 65\] float32 on cpu, got"):
        getattr(engine, scope)(x)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"mode": "cudagraph"}, EngineError, "mode 'cudagraph' needs a CUDA device, not cpu; use 'eager' or 'compile'"),
        ({"mode": "fast"}, ValueError, "mode must be one of eager, compile, cudagraph, got 'fast'"),
        ({"dtype": torch.float64}, ValueError, "one of torch.float32, torch.float16, torch.bfloat16, got torch.f"),
        ({"dtype": "float32"}, ValueError, r"torch.bfloat16, got 'float32'; give dtype=torch.float32\."),
        ({"dtype": "half"}, ValueError, r"torch.bfloat16, got 'half'\."),
        ({"dtype": torch.uint8}, ValueError, "dtype must be one of"),
        ({"dtype": np.float32}, ValueError, "dtype must be one of .* got type"),
        ({"mode": None}, ValueError, "mode must be one of eager, compile, cudagraph, got None"),
        ({"size": "64x64"}, ValueError, r"size must be \(height, width\) of the frames, got '64x64'"),
        ({"size": np.int64(64)}, ValueError, r"; for a square, size=\(64, 64\)"),
        ({"size": (64.0, 64)}, ValueError, r"size and batch must be integers, got \(64\.0, 64\) and 1"),
        ({"size": ("64", 64)}, ValueError, "size and batch must be integers"),
        ({"size": (True, 64)}, ValueError, "size and batch must be integers"),
        ({"size": (float("nan"), 64)}, ValueError, "size and batch must be integers"),
        ({"size": (64, 2**40)}, ValueError, r"size and batch must be 2\^24 at most, got 64x1099511627776 and 1"),
        ({"batch": None}, ValueError, r"size and batch must be integers, got \(64, 64\) and None"),
        ({"batch": torch.ones(2)}, ValueError, r"and a tensor \[2\]"),
        ({"size": [64, 64, 3]}, ValueError, r"size must be \(height, width\) of the frames, got \[64, 64, 3\]"),
        ({"size": 256}, ValueError, r"size must be \(height, width\) .* got 256; for a square, size=\(256, 256\)"),
        ({"size": (64, 64, 3)}, ValueError, r"size must be \(height, width\) of the frames, got \(64, 64, 3\)"),
        ({"size": (0, 64)}, ValueError, "size and batch must be positive, got 0x64 and 1"),
        ({"size": (64, -1)}, ValueError, "size and batch must be positive"),
        ({"batch": 0}, ValueError, "size and batch must be positive, got 64x64 and 0"),
        ({"device": "gpu"}, ValueError, "there is no device called gpu; give auto, cpu, cuda, cuda:1, ..."),
        ({"device": ["cpu"]}, ValueError, r"there is no device called \['cpu'\]; give auto, cpu"),
    ],
    ids=lambda value: ",".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        build_engine(network(S), **({"size": (64, 64), "device": "cpu"} | arguments))


@pytest.mark.parametrize(
    "size",
    [[33, 57], torch.Size([33, 57]), (np.int64(33), np.uint8(57)), (torch.tensor(33), torch.tensor(57))],
    ids=["list", "torch.Size", "numpy", "tensors"],
)
def test_sizes_as_people_write_them(size):
    engine = build_engine(network(S), size, device="cpu", batch=np.int32(2), check=False)
    assert (engine.size, engine.batch) == ((33, 57), 2)
    assert all(type(value) is int for value in (*engine.size, engine.batch))
    assert engine(byte(2, 33, 57, 3)).shape == (2, 33, 57)


def test_models_that_are_none():
    with pytest.raises(
        TypeError, match=r"got .*Identity: .*give what hyperseg\.create_model or hyperseg\.load returns"
    ):
        build_engine(torch.nn.Identity(), (64, 64), device="cpu")
    empty = copy.deepcopy(network(S)).to("meta")
    with pytest.raises(ValueError, match=r"on the meta device, which have no values; load some with .*assign=True"):
        build_engine(empty, (64, 64), device="cpu")


def test_a_missing_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EngineError, match=r"there is no cuda: PyTorch.* sees no CUDA devices here; give cpu or auto"):
        build_engine(network(S), (64, 64), device="cuda")
    assert build_engine(network(S), (32, 32), check=False).device == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(EngineError, match="there is no cuda:2: PyTorch sees 2 CUDA devices here; give cpu or auto"):
        build_engine(network(S), (64, 64), device="cuda:2")


# ---------------------------------------------------------------------------------------------------------------------
# Comparison with the module


def spoil(monkeypatch, change):
    """Change every folded network built from now on."""

    class Spoiled(FoldedNetwork):
        def __init__(self, model, fuse, generate_ahead):
            super().__init__(model, fuse, generate_ahead)
            with torch.no_grad():
                change(self)

    monkeypatch.setattr(engine_module, "FoldedNetwork", Spoiled)


MISMATCH = (
    r"^Engine output \(eager, float32, cpu\) does not match the module: relative RMS error .*, tolerance 0\.0001\."
)

CORRUPTIONS = {
    "generator": lambda folded: folded.generators[4][:20].mul_(1.1),
    "bias": lambda folded: folded.biases[3].add_(0.05),
    "last-bias": lambda folded: folded.biases[-1].add_(0.01),
    "context": lambda folded: folded.context.reduce.conv.bias.add_(0.1),
    "stem": lambda folded: folded.encoder.trunk.conv_stem.weight.mul_(1.05),
    "nan": lambda folded: folded.biases[-1][-1].fill_(torch.nan),
    "infinity": lambda folded: folded.biases[-1][-1].fill_(torch.inf),
}


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_an_engine_that_does_not_match_is_an_error(corruption, monkeypatch):
    spoil(monkeypatch, CORRUPTIONS[corruption])
    with pytest.raises(EngineError, match=MISMATCH):
        build_engine(network(S), (64, 64), device="cpu")


def test_without_the_comparison(monkeypatch):
    spoil(monkeypatch, CORRUPTIONS["bias"])
    engine = build_engine(network(S), (64, 64), device="cpu", check=False)
    assert engine.parity is None
    with pytest.raises(EngineError, match=MISMATCH):
        engine.check(network(S))


def test_the_error_of_float16_overflow_has_advice():
    model = copy.deepcopy(network(S))
    with torch.no_grad():
        model.decoder.levels[0].norms[0].weight.mul_(1e6)
        model.decoder.levels[0].norms[0].bias.mul_(1e6)
        model.decoder.levels[1].norms[0].running_var.mul_(1e12)
    build_engine(model, (64, 64), device="cpu")
    with pytest.raises(EngineError, match="may not fit float16; try bfloat16 or float32"):
        build_engine(model, (64, 64), dtype=torch.float16, device="cpu")


def test_constant_logits_cause_a_warning():
    model = copy.deepcopy(network(S))
    with torch.no_grad():
        model.decoder.levels[-1].norms[-1].weight.zero_()
        model.decoder.levels[-1].norms[-1].bias.zero_()
    with pytest.warns(UserWarning, match=r"logits are the same everywhere.*hyperseg\.synthesize_weights") as caught:
        build_engine(model, (64, 64), device="cpu")
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_engine(model, (64, 64), device="cpu", check=False)
        build_engine(network(S), (64, 64), device="cpu")


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize("name", [S, "hyperseg-s-cityscapes", "hyperseg-l-voc"])
def test_the_model_is_not_changed(name, training):
    model = copy.deepcopy(network(name)).train(training)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    build_engine(model, (33, 57), dtype=torch.bfloat16, device="cpu")
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], value) and after[key].dtype == value.dtype for key, value in before.items())
    assert all(module.training == training for module in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_changing_the_model_later_does_not_change_the_engine():
    model = copy.deepcopy(network(S))
    engine = build_engine(model, (64, 64), device="cpu")
    frames = probe_frames(1, (64, 64))
    before = engine.logits(frames)
    synthesize_weights(model, seed=1)
    assert torch.equal(engine.logits(frames), before)


def test_comparison_of_logits():
    expected = torch.tensor([[[[3.0, 0.0]], [[4.0, 0.0]]]])
    logits = torch.tensor([[[[3.0, 0.5]], [[4.0, 0.0]]]])
    parity = compare_logits(logits, expected)
    assert parity == Parity(pytest.approx(0.1), pytest.approx(0.125), 1.0)
    assert compare_logits(-expected, expected).label_agreement == 0.5


# ---------------------------------------------------------------------------------------------------------------------
# Modes and devices


@pytest.mark.slow
@pytest.mark.parametrize("name", [S, "hyperseg-l-voc"])
def test_compiled(name):
    engine = build_engine(network(name), (33, 57), device="cpu", mode="compile")
    eager = build_engine(network(name), (33, 57), device="cpu")
    frames = probe_frames(1, (33, 57), seed=3)
    assert relative_rms(engine.logits(frames), eager.logits(frames)) < 1e-4
    assert (engine(frames) == eager(frames)).float().mean() > 0.99
    explained = engine.explain(frames, repeats=1)
    assert {call.operator for call in explained.calls} == {call.operator for call in eager.explain(repeats=1).calls}
    assert explained.notes[0] == "Between the calls run kernels that torch.compile generated."


@needs_cuda
@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["eager", "cudagraph"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=lambda d: str(d)[6:])
@names
def test_on_the_gpu(name, dtype, mode):
    # At this size 16-bit floats determine the outputs of these weights, as in test_16_bit_floats.
    model, size = network(name), (65, 70)
    engine = build_engine(model, size, dtype=dtype, device="cuda", batch=2, mode=mode)
    first, second = probe_frames(2, size, seed=3), probe_frames(2, size, seed=4)
    with torch.inference_mode():
        expected = model(normalised(first, model.config))
    labels = engine(first.cuda())
    assert labels.device.type == "cuda"
    kept = labels.clone()
    assert not torch.equal(engine(second.cuda()), labels)
    assert torch.equal(labels, kept), "a later call must not overwrite returned labels"
    assert relative_rms(engine.logits(first).cpu(), expected) < TOLERANCES[dtype].relative_rms
    from_host = engine.from_host(first.pin_memory())
    assert from_host.device.type == "cpu"
    assert torch.equal(from_host, labels.cpu())
    assert torch.equal(engine(first), from_host)
    if dtype == torch.float32:
        assert_same_labels(labels, expected, 1e-3 * expected.abs().max().item())


@needs_cuda
@pytest.mark.gpu
def test_the_gpu_is_the_default():
    assert build_engine(network(S), (64, 64)).device.type == "cuda"


@needs_cuda
@pytest.mark.gpu
@pytest.mark.slow
def test_compiled_on_the_gpu():
    engine = build_engine(network(S), (65, 97), dtype=torch.float16, device="cuda", mode="compile")
    frames = probe_frames(1, (65, 97), seed=3)
    with torch.inference_mode():
        expected = network(S)(normalised(frames, network(S).config))
    assert relative_rms(engine.logits(frames).cpu(), expected) < TOLERANCES[torch.float16].relative_rms


def test_one_engine_for_one_size(engine):
    assert (engine.size, engine.batch, engine.dtype, engine.mode) == ((40, 65), 1, torch.float32, "eager")
    assert engine.config is network(S).config


@pytest.mark.parametrize(
    ("dtype", "instructions", "slow"),
    [
        (torch.float32, "avx2", False),
        (torch.bfloat16, "amx", False),
        (torch.bfloat16, "avx512_bf16", False),
        (torch.bfloat16, "avx512", True),
        (torch.float16, "amx", True),
    ],
)
def test_a_dtype_that_saves_no_time_is_reported(monkeypatch, caplog, dtype, instructions, slow):
    monkeypatch.setattr(engine_module, "cpu_capability", lambda: instructions)
    build_engine(network(S), (64, 96), dtype, "cpu", check=False)
    assert ("saves no time" in caplog.text) == slow
    assert f"the C++ operators use {instructions}" in caplog.text or not slow


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_engine_without_the_extension(dtype, monkeypatch):
    """As after an installation without a compiler, or on Windows: every operator runs by its reference."""
    monkeypatch.setattr("hyperseg.ops.chosen", lambda operator, device: ("reference", {}))
    monkeypatch.setattr("hyperseg.ops.has_kernel", lambda operator, device: False)
    engine = build_engine(synthesize_weights(create_model(S)).eval(), size=(64, 96), dtype=dtype)
    assert engine(torch.zeros(1, 64, 96, 3, dtype=torch.uint8)).shape == (1, 64, 96)
