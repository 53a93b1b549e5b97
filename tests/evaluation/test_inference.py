"""Labels of images by a network, against what the settings say in plain PyTorch."""

import numpy as np
import pytest
import skimage.data
import torch
import torch.nn.functional as F
from PIL import Image

from hyperseg.data.dataset import Item
from hyperseg.data.files import DataFile
from hyperseg.evaluation.inference import Inference, NetworkLabeller
from hyperseg.runtime import EngineError
from tests import golden
from tests.evaluation.networks import Painted, PaintedEngine

ITEM = Item("photo", DataFile("photo.png"), None)
SIZES = [(45, 70), (64, 60), (45, 70)]


@pytest.fixture(scope="module")
def photos():
    return [resized(skimage.data.astronaut()[90 * index :], size) for index, size in enumerate(SIZES)]


@pytest.fixture
def engines(monkeypatch):
    """Replace engines by modules; the (size, batch, check) that they were built for."""
    built = []

    def build_engine(model, size, dtype, device, batch, check):
        built.append((tuple(size), batch, check))
        engine = PaintedEngine(model, size, batch)
        engine.others = built
        return engine

    monkeypatch.setattr("hyperseg.evaluation.inference.build_engine", build_engine)
    return built


def label(images, model=None, **settings):
    labeller = NetworkLabeller(model or Painted(), Inference(**settings))
    prepared = [labeller.prepare(ITEM, image, image.shape[:2]) for image in images]
    return [labels.numpy() for labels in labeller.labels(prepared)]


def scores(image, model=None):
    """Scores [1, K, H, W] of an image at its own size."""
    model = model or Painted()
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (model.config.mean, model.config.std))
    with torch.no_grad():
        return model((torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255 - mean) / std)


def resized(image, size):
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))


def back(logits, image):
    return F.interpolate(logits, size=image.shape[:2], mode="bilinear", align_corners=False)


def flipped(image):
    return scores(image[:, ::-1]).flip(3)


def agree(found, logits):
    """Labels are the largest score at each pixel, where that is clear of rounding."""
    best = logits[0].topk(2, dim=0)
    clear = ((best.values[0] - best.values[1]) > 1e-4).numpy()
    assert clear.mean() > 0.98
    np.testing.assert_array_equal(found[clear], best.indices[0].numpy()[clear])


@pytest.mark.parametrize("engine", [True, False])
def test_native_size_in_batches_of_equal_sizes(photos, engines, engine):
    found = label(photos, engine=engine, batch=2)
    for image, labels in zip(photos, found, strict=True):
        assert labels.dtype == np.uint8
        agree(labels, scores(image))
    # One engine per size; the single image of its size is repeated; the first engine alone is compared.
    assert engines == ([((45, 70), 2, True), ((64, 60), 2, False)] if engine else [])


@pytest.mark.parametrize("engine", [True, False])
def test_another_size(photos, engines, engine):
    for image, labels in zip(photos, label(photos, size=(32, 40), engine=engine), strict=True):
        assert labels.shape == image.shape[:2]
        agree(labels, back(scores(resized(image, (32, 40))), image))


@pytest.mark.parametrize("engine", [True, False])
def test_padding_as_the_published_test_on_voc(photos, engines, engine):
    image = photos[0]
    padded = np.zeros((64, 80, 3), np.uint8)
    padded[:45, :70] = image
    (found,) = label([image], size=(64, 80), resize="pad", engine=engine)
    agree(found, scores(padded)[:, :, :45, :70])
    (larger,) = label([image], size=(32, 80), resize="pad", engine=engine)  # never cropped
    agree(larger, scores(padded[:45])[:, :, :45, :70])


@pytest.mark.parametrize("combine", ["softmax", "logits"])
def test_scales_and_flips_are_averaged(photos, engines, combine):
    image = photos[0]
    total = 0
    for size in ((22, 35), (45, 70), (90, 140)):  # 22.5 rounds to even
        shown = resized(image, size)
        for logits in (scores(shown), flipped(shown)):
            at_size = back(logits, image)
            total = total + (at_size.softmax(1) if combine == "softmax" else at_size)
    (found,) = label([image], scales=(0.5, 1.0, 2.0), flip=True, combine=combine)
    agree(found, total / 6)


def test_the_official_pyramid(photos, engines):
    """SPEC H.1: the maximum over the flip, and a running half-average at the first size."""
    image = photos[0]
    per_size = []
    for size in ((45, 70), (90, 140), (22, 35)):
        shown = resized(image, size)
        per_size.append(back(torch.maximum(scores(shown), flipped(shown)), image))
    (found,) = label([image], scales=(1.0, 2.0, 0.5), flip=True, combine="official")
    agree(found, per_size[0] / 4 + per_size[1] / 4 + per_size[2] / 2)


def test_windows_are_averaged_where_they_overlap(photos, engines):
    image = photos[0]
    total, count = torch.zeros(1, 12, 45, 70), torch.zeros(45, 70)
    for top in (0, 20, 21):
        for left in (0, 20, 40):
            total[:, :, top : top + 24, left : left + 30] += scores(image[top : top + 24, left : left + 30])
            count[top : top + 24, left : left + 30] += 1
    (found,) = label([image], window=(24, 30), stride=(20, 20))
    agree(found, total / count)
    assert {built[0] for built in engines} == {(24, 30)}
    (whole,) = label([image], window=(500, 500))
    agree(whole, scores(image))


def test_another_normalisation(photos, engines):
    """The scores of this network do not depend on it, but what reaches its first operation does."""
    model = Painted()
    seen = NetworkLabeller(model, Inference(mean=(0.5, 0.5, 0.5), std=(0.25, 0.5, 0.5))).network.config
    assert (seen.mean, seen.std) == ((0.5, 0.5, 0.5), (0.25, 0.5, 0.5))
    assert model.config.mean == (0.485, 0.456, 0.406)  # the caller's network is as it was
    (found,) = label([photos[0]], mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5), engine=False)
    agree(found, scores(photos[0]))


def test_a_true_network_labels_alike_as_engine_and_module():
    model = golden.golden_model("hyperseg-s-camvid").eval()
    image = np.asarray(Image.fromarray(skimage.data.chelsea()).resize((100, 70)))
    for size in (None, (64, 96)):
        (fast,), (plain,) = label([image], model, size=size), label([image], model, size=size, engine=False)
        assert len(np.unique(plain)) > 3
        assert (fast == plain).mean() > 0.999
        shown = image if size is None else resized(image, size)
        agree(plain, back(scores(shown, model), image))


def test_the_module_is_copied(photos):
    model = Painted().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    label([photos[0]], model, engine=False, dtype=torch.bfloat16)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_a_weight_that_overflows_is_named():
    model = Painted()
    with torch.no_grad():
        model.colors[0, 0] = 70000
    with pytest.raises(ValueError, match="weights colors overflow in float16; use float32"):
        NetworkLabeller(model, Inference(engine=False, dtype=torch.float16))
    assert model.colors[0, 0] == 70000


def test_scores_that_overflow_are_refused(photos):
    model = Painted()
    with torch.no_grad():
        model.colors[0, 0] = 60000
    with pytest.raises(EngineError, match="overflow in float16"):
        label([photos[0]], model, engine=False, dtype=torch.float16)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scales": ()}, "scales"),
        ({"scales": (0.0,)}, "scales"),
        ({"combine": "median"}, "combine"),
        ({"resize": "crop"}, "resize"),
        ({"resize": "pad"}, "size to pad to"),
        ({"resize": "pad", "size": (8, 8), "scales": (1.0, 2.0)}, "scale 1 only"),
        ({"batch": 0}, "batch"),
        ({"stride": (8, 8)}, "window"),
        ({"stride": (8, 80), "window": (20, 20)}, "left out"),
    ],
)
def test_settings_that_do_not_go_together(settings, message):
    with pytest.raises(ValueError, match=message):
        Inference(**settings)
