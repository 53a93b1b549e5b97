"""The ONNX form: standard operators only, and the module's labels and logits; a folded network, any batch and size."""

import json
import shutil

import numpy as np
import pytest
import torch

import hyperseg
from hyperseg.data import open_dataset
from hyperseg.export import ExportError, OnnxLabeller, export_onnx
from hyperseg.export.common import Options, Reference
from hyperseg.export.lowering import LOWERINGS, lower
from hyperseg.export.network import LabelsAndLogits
from hyperseg.export.onnx import save, trace
from hyperseg.export.runtimes import RUNTIMES, Runtime, load_onnxruntime, load_openvino
from hyperseg.export.sidecar import describe_program
from hyperseg.models import synthesize_weights
from hyperseg.models.synthetic import probe_frames
from hyperseg.runtime.folding import FoldedNetwork
from tests.export.packages import needs_onnx, needs_openvino


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("name", ["hyperseg-s-cityscapes", "hyperseg-l-voc"], ids=["own-halo", "neighbour-halo"])
def test_lowered_levels_match_the_module(name, lowering):
    network = synthesize_weights(hyperseg.create_model(name, encoder="test_efficientnet").eval())
    frames = probe_frames(2, (33, 70))
    # In float64, because in float32 random weights may not determine the logits.
    module = LabelsAndLogits(FoldedNetwork(network).double()).eval()
    with torch.no_grad(), hyperseg.ops.use_backend("reference"):
        labels, logits = module(frames)
        run = lower(torch.export.export(module, (frames,)), lowering).module()
    found = run(frames)
    assert torch.equal(found[0], labels)
    torch.testing.assert_close(found[1], logits, rtol=0, atol=1e-6 * float(logits.abs().max()))


@pytest.fixture(scope="module")
def both(small, tmp_path_factory):
    """A program for frames of an odd size, in any number, with both outputs."""
    path, options = tmp_path_factory.mktemp("both") / "both.onnx", Options((50, 70))
    save(trace(small, options, "multiply"), path, describe_program("onnx", small, options))
    return path


def take(both, monkeypatch):
    """Have exports of that size take that file, which saves the time of tracing and converting again."""
    monkeypatch.setattr("hyperseg.export.onnx.trace", lambda *args: None)
    monkeypatch.setattr("hyperseg.export.onnx.save", lambda program, path, about: shutil.copy(both, path))


@pytest.fixture
def traced(both, monkeypatch):
    take(both, monkeypatch)


@pytest.fixture(scope="module")
def written(small, both, tmp_path_factory):
    """The same as users get it."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        take(both, monkeypatch)
        return export_onnx(small, tmp_path_factory.mktemp("onnx") / "small.onnx", size=(50, 70), source="a test")


def computed_weights(graph):
    """The convolutions of an ONNX graph whose weights are not stored in it."""
    stored = {each.name for each in graph.initializer}
    return [node for node in graph.node if node.op_type == "Conv" and node.input[1] not in stored]


@needs_onnx
def test_a_program_for_any_number_of_frames(written, small):
    import onnx

    model = onnx.load(str(written.file))
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 18)]
    assert {node.domain for node in model.graph.node} == {""}
    (frames,), (labels,) = model.graph.input, model.graph.output
    shapes = [[d.dim_value for d in value.type.tensor_type.shape.dim] for value in (frames, labels)]
    assert (frames.name, labels.name, shapes) == ("frames", "labels", [[0, 50, 70, 3], [0, 50, 70]])
    assert computed_weights(model.graph) == []
    (metadata,) = (json.loads(each.value) for each in model.metadata_props if each.key == "hyperseg")
    assert metadata["classes"][0] == "Sky"
    assert metadata["normalisation"]["mean"] == list(small.config.mean)


@needs_onnx
def test_it_was_checked_in_batches(written):
    runtime = RUNTIMES["onnxruntime"].name
    ours = [check for check in written.checks if check.runtime == runtime]
    assert [check.batch for check in ours] == [1, 2]
    for check in written.checks:
        assert check.agreement >= 0.999
        assert check.relative_rms < 1e-4
    about = json.loads(written.sidecar.read_text())
    assert about == written.about
    assert about["weights"]["source"] == "a test"
    assert about["checks"][0]["agreement"] == ours[0].agreement
    assert (about["opset"], about["lowering"], about["batch"], about["size"]) == (18, "multiply", "dynamic", [50, 70])
    assert about["output"] == {"name": "labels", "dtype": "uint8", "layout": "NHW", "shape": ["N", 50, 70]}


@needs_onnx
def test_three_frames_at_once(written, small):
    frames = probe_frames(3, (50, 70), seed=5)
    labels = load_onnxruntime(written.file)(frames.numpy())
    engine = hyperseg.build_engine(small, size=(50, 70), batch=3, device="cpu")
    assert (torch.from_numpy(labels) == engine(frames)).float().mean() > 0.999


@needs_onnx
@pytest.mark.parametrize("runtime", ["onnxruntime", pytest.param("openvino", marks=needs_openvino)])
def test_a_program_is_scored_on_a_data_set(written, small, runtime):
    dataset = open_dataset("synthetic", None, "val", images=1)
    labeller = OnnxLabeller(written.file, runtime)
    image, truth = dataset.sample(0)
    (labels,) = labeller.labels([labeller.prepare(dataset.items[0], image, truth.shape)])
    assert labels.dtype == torch.uint8
    assert labels.shape == truth.shape
    reference = Reference(small, Options((50, 70)))
    (same,) = labeller.labels([labeller.prepare(dataset.items[0], reference.frames[0].numpy(), (50, 70))])
    assert (same == reference.logits[0].argmax(0)).float().mean() > 0.99


@needs_onnx
def test_logits_of_one_frame_by_a_convolution(small, tmp_path, capsys):
    import onnx

    exported = export_onnx(small, tmp_path / "one.onnx", size=(64, 64), batch=1, returns="logits")
    assert capsys.readouterr().out == ""
    assert exported.about["lowering"] == "conv"
    assert exported.about["output"]["shape"] == [1, 12, 64, 64]
    assert exported.checks[0].relative_rms < 1e-4
    graph = onnx.load(str(exported.file)).graph
    assert len(computed_weights(graph)) == 2, "one for each inverted residual"
    makers = {output: node for node in graph.node for output in node.output}
    sliced = [node.input[0] for node in graph.node if node.op_type == "Slice"]
    for convolution in computed_weights(graph):
        node = makers[convolution.input[1]]
        while node.op_type == "Reshape":
            node = makers[node.input[0]]
        assert node.op_type == "Slice"
        assert sliced.count(node.input[0]) == 1, "of several slices OpenVINO would make a split"
    assert not [node for node in graph.node if node.op_type == "ArgMax"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.onnx", "one.onnx.json"]


@needs_onnx
def test_float16(small, tmp_path):
    import onnx

    exported = export_onnx(small, tmp_path / "it.onnx", size=(32, 64), batch=1, precision="float16")
    assert exported.checks[0].agreement > 0.985
    graph = onnx.load(str(exported.file)).graph
    weights = {each.data_type for each in graph.initializer if len(each.dims) == 4}
    assert weights == {onnx.TensorProto.FLOAT16}
    assert (graph.input[0].type.tensor_type.elem_type, graph.output[0].type.tensor_type.elem_type) == (2, 2), "uint8"


@needs_onnx
def test_int8(small, written, traced, tmp_path):
    import onnx

    calibration = list(probe_frames(8, (50, 70), seed=1))
    exported = export_onnx(small, tmp_path / "it.onnx", size=(50, 70), precision="int8", calibration=calibration)
    assert exported.about["bytes"] < written.about["bytes"]
    assert exported.about["calibration"]["frames"] == 8
    assert exported.checks[0].runtime.startswith("onnxruntime")
    assert min(check.agreement for check in exported.checks) > 0.8
    graph = onnx.load(str(exported.file)).graph
    quantised = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    in_int8 = [node for node in convolutions if node.input[1] in quantised]
    assert len(in_int8) > 5, "the encoder's"
    assert len(in_int8) < len(convolutions) - 10, "not the context head, the features' reductions, the generators"
    assert not [node for node in graph.node if node.op_type == "MatMul" and set(node.input) & quantised]


@needs_onnx
@needs_openvino
def test_int8_of_one_frame_in_openvino(small, tmp_path):
    """A program with grouped convolutions of generated weights, and the labels of the same file in ONNX Runtime."""
    size = (64, 64)
    calibration = list(probe_frames(8, size, seed=1))
    exported = export_onnx(
        small, tmp_path / "it.onnx", size=size, batch=1, precision="int8", calibration=calibration, returns="logits"
    )
    assert exported.about["lowering"] == "conv"
    assert [check.runtime for check in exported.checks] == [runtime.name for runtime in RUNTIMES.values()]
    assert min(check.agreement for check in exported.checks) > 0.8
    theirs, ours = (run(exported.file)(calibration[0][None].numpy()) for run in (load_onnxruntime, load_openvino))
    assert (theirs.argmax(1) == ours.argmax(1)).mean() > 0.9


@needs_onnx
def test_a_runtime_that_cannot_run_a_program(small, traced, tmp_path, monkeypatch):
    def refuse(path):
        raise RuntimeError("no such kernel")

    monkeypatch.setitem(RUNTIMES, "onnxruntime", Runtime("onnxruntime", refuse))
    monkeypatch.setattr("hyperseg.export.onnx.installed", lambda package: package == "onnxruntime")
    with pytest.raises(ExportError, match=r"cannot run the file \(no such kernel\), .* give check=False"):
        export_onnx(small, tmp_path / "it.onnx", size=(50, 70))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": (64,)}, r"size must be \(height, width\)"),
        ({"size": (0, 64)}, r"each 1 to 16384, got \(0, 64\)"),
        ({"size": "64x96"}, "got '64x96'"),
        ({"batch": 0}, "batch must be a number of frames from 1"),
        ({"batch": "any"}, "or None for any"),
        ({"returns": "scores"}, "returns must be one of labels, logits"),
        ({"precision": "bfloat16"}, "precision must be one of float32, float16, int8 for onnx"),
        ({"lowering": "loop"}, "lowering must be one of conv, multiply"),
        ({"lowering": "conv"}, "'conv' needs a fixed batch"),
        ({"precision": "int8"}, "at least 8 frames"),
        ({"precision": "int8", "calibration": [torch.zeros(8, 8, 3)] * 8}, r"must be uint8 \[64, 96, 3\]"),
        ({"calibration": [torch.zeros(64, 96, 3, dtype=torch.uint8)]}, "calibration is for precision 'int8'"),
    ],
)
def test_wrong_arguments(arguments, message, small, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_onnx(small, tmp_path / "none.onnx", **{"size": (64, 96), **arguments})
    assert not list(tmp_path.iterdir())


@needs_onnx
def test_a_program_that_does_not_match_is_not_written(small, traced, tmp_path, monkeypatch):
    compare = Reference.compare

    def wrong(self, runtime, labels, logits):
        return compare(self, runtime, lambda frames: np.zeros_like(labels(frames)), logits)

    monkeypatch.setattr(Reference, "compare", wrong)
    with pytest.raises(ExportError, match=r"does not match the network .* at least 99\.9 % are expected"):
        export_onnx(small, tmp_path / "wrong.onnx", size=(50, 70))
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("hyperseg.export.onnx.installed", lambda package: False)
    exported = export_onnx(small, tmp_path / "unknown.onnx", size=(50, 70))
    assert exported.checks == ()
    assert exported.notes[0] == "onnxruntime is not installed, so the file was not run there"
