"""The ONNX form: standard operators only, and the module's labels and logits."""

import importlib.util

import pytest
import torch

import hyperseg
from hyperseg.export.onnx import FrameToLabels, export_program, write_onnx
from hyperseg.models import synthesize_weights


@pytest.fixture(scope="module")
def exported():
    """A network with a small encoder, a frame, and the program of both."""
    network = synthesize_weights(hyperseg.create_model("hyperseg-s-camvid", encoder="resnet18").eval())
    frame = torch.randint(256, (1, 64, 96, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    return network, frame, export_program(network, frame)


def test_the_program_has_no_hyperseg_operator(exported):
    _, _, program = exported
    called = {node.target for node in program.graph.nodes if node.op == "call_function"}
    assert len(called) > 10
    assert not [target for target in called if getattr(target, "namespace", "") == "hyperseg"]


def test_the_program_matches_the_module(exported):
    network, frame, program = exported
    module = FrameToLabels(network).eval()
    with torch.no_grad(), hyperseg.ops.use_backend("reference"):
        labels, logits = module(frame), module.logits(frame)
    found = program.module()(frame)
    assert labels.dtype == torch.uint8
    assert labels.shape == (1, 64, 96)
    assert torch.equal(found[0], labels)
    torch.testing.assert_close(found[1], logits)


def test_another_output_is_refused(exported, tmp_path):
    _, _, program = exported
    with pytest.raises(ValueError, match="the outputs are labels and logits, got scores"):
        write_onnx(program, {"scores": tmp_path / "scores.onnx"})


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("onnx", "onnxscript"))), reason="onnx and onnxscript are not installed"
)
def test_each_file_has_one_output(exported, tmp_path, capsys):
    import onnx

    _, _, program = exported
    files = {"labels": tmp_path / "labels.onnx", "logits": tmp_path / "logits.onnx"}
    write_onnx(program, files)
    assert capsys.readouterr().out == ""
    for path, shape in ((files["labels"], [1, 64, 96]), (files["logits"], [1, exported[0].config.num_classes, 64, 96])):
        (output,) = onnx.load(path).graph.output
        assert [d.dim_value for d in output.type.tensor_type.shape.dim] == shape
