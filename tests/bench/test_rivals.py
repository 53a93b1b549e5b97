"""Networks of others: the table, what is missing, repositories that are pointed at, folded norms."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from bench.core import rivals
from bench.core.errors import Refused
from bench.core.rivals import RIVALS, Rival, Scores

LRASPP = "lraspp_mobilenet_v3_large"
PIDNET = """
from .parts import Block

def get_pred_model(name, num_classes):
    return Block(name, num_classes)
"""
PARTS = """
from torch import nn

class Block(nn.Module):
    def __init__(self, name, num_classes):
        super().__init__()
        self.name = name
        self.conv = nn.Conv2d(3, num_classes, 3, stride=8)
        self.norm = nn.SyncBatchNorm(num_classes)

    def forward(self, x):
        return self.norm(self.conv(x))
"""


@pytest.fixture
def repository(tmp_path):
    """A clone whose package would fail if it were imported as a whole."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "models" / "pidnet.py").write_text(PIDNET)
    (tmp_path / "models" / "parts.py").write_text(PARTS)
    return tmp_path


def test_the_table_is_complete():
    assert {*rivals.FOR_FRAMES, *rivals.FOR_TRAINING} == RIVALS.keys()
    for name, rival in RIVALS.items():
        assert bool(rival.package and rival.build) != bool(rival.checkout), name
        assert rival.link.startswith("https://"), name
        assert rival.licence, name
    assert all(RIVALS[name].build for name in rivals.FOR_TRAINING)


def test_a_network_is_built_and_folded():
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    network = rivals.build(LRASPP, 19, "", seed=0)
    rivals.settle_norms(network, images)
    copied, how = rivals.folded(LRASPP, network, images)
    assert how == "norms folded"
    assert any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    with torch.no_grad():
        scores, expected = (Scores(each, RIVALS[LRASPP].scores)(images) for each in (copied, network))
    assert scores.shape == (2, 19, 64, 96)
    torch.testing.assert_close(scores, expected, rtol=1e-3, atol=1e-4)
    assert rivals.about(LRASPP).startswith("torchvision ")
    again = rivals.build(LRASPP, 19, "", seed=0)
    assert torch.equal(next(again.parameters()), next(network.parameters()))


class Branches(nn.Module):
    """torch.fx cannot trace it."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm(self.conv(x if x.sum() > 0 else -x))


def wrongly_folded(network):
    return nn.Conv2d(3, 4, 1)


@pytest.mark.parametrize(
    ("fold", "message"), [(None, "norms not folded (TraceError"), (wrongly_folded, "folding changed its scores by")]
)
def test_a_network_that_cannot_be_folded_keeps_its_norms(monkeypatch, fold, message):
    monkeypatch.setattr(rivals, "RIVALS", {"other": Rival("torch", fold=fold)})
    network = Branches().eval()
    copied, how = rivals.folded("other", network, torch.rand(1, 3, 8, 8))
    assert copied is network
    assert message in how


def test_norms_get_the_statistics_of_the_images():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    images = 100 * torch.randn(2, 3, 16, 16)
    rivals.settle_norms(network, images)
    assert not network.training
    assert network(images).std().item() == pytest.approx(1, abs=0.05)


def test_what_is_missing_is_reported(monkeypatch, tmp_path):
    found = SimpleNamespace(find_spec=lambda name: object() if name == "torchvision" else None)
    monkeypatch.setattr(rivals.importlib, "util", found)
    log = []
    assert rivals.pick(None, rivals.FOR_FRAMES, log.append) == [LRASPP]
    assert log == [
        "segformer_b0 needs transformers, not installed here: pip install transformers.",
        "pidnet_s needs its authors' code: git clone https://github.com/XuJiacong/PIDNet, then --pidnet FOLDER.",
        "ddrnet_23_slim needs its authors' code: git clone https://github.com/ydhongHIT/DDRNet, then --ddrnet FOLDER.",
        "yolo26n_sem needs ultralytics, not installed here: pip install ultralytics.",
    ]
    assert rivals.pick(["pidnet_s"], rivals.FOR_FRAMES, print, {"pidnet": tmp_path}) == ["pidnet_s"]
    with pytest.raises(Refused, match="pidnet_s needs its authors' code"):
        rivals.pick(["pidnet_s"], rivals.FOR_FRAMES, print, {"pidnet": None})
    with pytest.raises(Refused, match="no peer 'unet'; there are lraspp"):
        rivals.pick(["unet"], rivals.FOR_FRAMES, print)


def test_a_repository_is_pointed_at(repository):
    network = rivals.build("pidnet_s", 5, "", 0, {"pidnet": repository})
    assert network.name == "pidnet_s"
    assert type(network.norm) is nn.BatchNorm2d
    assert network(torch.rand(2, 3, 64, 96)).shape == (2, 5, 8, 12)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no .*pidnet.py; --pidnet takes a clone of https"),
        ("", r"pidnet.py cannot be used \(AttributeError: .*get_pred_model"),
        ("import nothing_of_this_name", r"cannot be used \(ModuleNotFoundError: .*nothing_of_this_name"),
    ],
)
def test_a_wrong_repository_is_reported(repository, text, message):
    file = repository / "models" / "pidnet.py"
    file.unlink() if text is None else file.write_text(text)
    with pytest.raises(Refused, match=message):
        rivals.build("pidnet_s", 5, "", 0, {"pidnet": repository})
