"""Programs of torch.export: the labels of an engine, with our operators inside, from any number of frames."""

import json

import pytest
import torch

import hyperseg
from hyperseg.export import ExportError, export_pt2, load_pt2
from hyperseg.models import synthesize_weights
from hyperseg.models.synthetic import probe_frames

SIZE = (50, 70)


@pytest.fixture(scope="module")
def network():
    return synthesize_weights(hyperseg.create_model("hyperseg-s-camvid", encoder="test_efficientnet").eval())


@pytest.fixture(scope="module")
def written(network, tmp_path_factory):
    return export_pt2(network, tmp_path_factory.mktemp("pt2") / "small.pt2", size=SIZE)


def test_labels_are_those_of_an_engine(written, network):
    program = load_pt2(written.file)
    for batch in (1, 3):
        frames = probe_frames(batch, SIZE, seed=batch)
        engine = hyperseg.build_engine(network, size=SIZE, batch=batch, device="cpu")
        with torch.inference_mode():
            labels = program(frames)
        assert labels.dtype == torch.uint8
        assert torch.equal(labels, engine(frames))
    assert [check.batch for check in written.checks] == [1, 2]
    assert min(check.agreement for check in written.checks) >= 0.999


@pytest.mark.parametrize(
    ("given", "error", "advice"),
    [
        ((torch.zeros(1, 8, 8, 3, dtype=torch.uint8),), ValueError, "export one for that size and batch"),
        ((torch.zeros(1, *SIZE, 3),), ValueError, r"give the pixels as they are, 0 to 255\."),
        (("a.png",), TypeError, "got str"),
        ((torch.zeros(1, *SIZE, 3, dtype=torch.uint8), 2), TypeError, "one argument, frames, by position; got 2"),
    ],
)
def test_wrong_frames_are_refused(written, given, error, advice):
    with pytest.raises(error, match=rf"small\.pt2 takes .*{advice}"):
        load_pt2(written.file)(*given)


def test_our_operators_are_inside(written):
    program = torch.export.load(written.file)
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert {"hyperseg.decoder_level.default", "hyperseg.upsample_argmax.default"} <= called


def test_logits_in_bfloat16(network, tmp_path):
    exported = export_pt2(network, tmp_path / "a.pt2", size=(32, 64), batch=1, returns="logits", precision="bfloat16")
    frames = probe_frames(1, (32, 64))
    with torch.inference_mode():
        logits = load_pt2(exported.file)(frames)
    engine = hyperseg.build_engine(network, size=(32, 64), dtype=torch.bfloat16, device="cpu", check=False)
    assert (logits.dtype, logits.shape) == (torch.float32, (1, 12, 32, 64))
    torch.testing.assert_close(logits, engine.logits(frames), rtol=0, atol=1e-6 * float(logits.abs().max()))
    assert exported.about["precision"] == "bfloat16"


def changed(written, tmp_path, **entries):
    """A copy of a program with other entries in its sidecar."""
    file = tmp_path / "copy.pt2"
    file.write_bytes(written.file.read_bytes())
    about = json.loads(written.sidecar.read_text())
    (tmp_path / "copy.pt2.json").write_text(json.dumps({**about, **entries}))
    return file


def test_another_version_is_refused(written, tmp_path):
    versions = {**written.about["versions"], "hyperseg": "0.0.1"}
    with pytest.raises(ExportError, match=r"was written by hyperseg 0\.0\.1, .* export it again, or install"):
        load_pt2(changed(written, tmp_path, versions=versions))
    with pytest.raises(ExportError, match="is 'onnx', not pt2"):
        load_pt2(changed(written, tmp_path, format="onnx"))


def test_what_cannot_be_traced_is_said(network, tmp_path, monkeypatch):
    def fails(*args, **kwargs):
        raise RuntimeError("data-dependent\ncontrol flow")

    monkeypatch.setattr(torch.export, "export", fails)
    with pytest.raises(ExportError, match=r"cannot be traced by torch.export \(data-dependent control flow\); a fixed"):
        export_pt2(network, tmp_path / "a.pt2", size=SIZE)
    assert not list(tmp_path.iterdir())


def test_a_device_that_is_not_there(network, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ExportError, match="there is no cuda"):
        export_pt2(network, tmp_path / "a.pt2", size=SIZE, device="cuda")
