"""Any timm model as the encoder."""

import pytest
import torch

from hyperseg.models import HyperSegConfig, create_model, model_config
from hyperseg.models.encoder import Encoder
from tests.models.networks import images

# With a stride-2 feature, without one, with NHWC features, with squeeze-excite.
ENCODERS = [
    "resnet18",
    "mobilenetv3_small_100",
    "convnext_atto",
    "swin_tiny_patch4_window7_224",
    "tf_efficientnet_b0",
]


@pytest.mark.parametrize("encoder", ENCODERS)
def test_any_timm_model_at_any_size(encoder):
    model = create_model("hyperseg-s-camvid", encoder=encoder).eval()
    assert model.config.encoder == encoder
    assert model.config.static_padding_size is None
    for size in ((64, 64), (33, 70)):
        with torch.inference_mode():
            features, head = model.encoder(images(64, 96))
            logits = model(images(*size))
        assert logits.shape == (1, 12, *size)
        assert logits.isfinite().all()
    assert [f.shape[1] for f in features] == list(model.config.feature_channels)
    assert [tuple(f.shape[2:]) for f in [*features, head]] == [(64 // s, 96 // s) for s in (2, 4, 8, 16, 32, 32)]
    assert head.shape[1] == model.config.head_channels


@pytest.mark.parametrize("encoder", ["resnet18", "convnext_atto"])
def test_all_parameters_of_another_encoder_are_trained(encoder):
    model = create_model("hyperseg-m", num_classes=3, encoder=encoder)
    # A batch large enough for batch statistics at stride 32.
    model(images(64, 64, batch=2)).square().mean().backward()
    untouched = [n for n, p in model.named_parameters() if n.startswith("encoder") and p.grad is None]
    assert untouched == []


def test_channels_last_features_with_as_many_rows_as_channels():
    """At height 384 the first feature of a Swin, [1, 96, w, 96], could be mistaken for channels-first."""
    config = model_config("hyperseg-s-camvid").replace(encoder="swin_tiny_patch4_window7_224", static_padding_size=None)
    with torch.inference_mode():
        features, _ = Encoder(config).eval()(images(384, 32))
    assert [tuple(f.shape[2:]) for f in features] == [(384 // s, 32 // s) for s in (2, 4, 8, 16, 32)]


def test_the_features_are_those_of_the_encoder():
    """A 1x1 convolution and a batch norm reduce them, without an activation."""
    encoder = Encoder(model_config("hyperseg-s-camvid").replace(encoder="resnet18", static_padding_size=None)).eval()
    x = images(64, 64)
    with torch.inference_mode():
        raw = encoder.trunk.net(x)
        features, _ = encoder(x)
        for reduce, source, feature in zip(encoder.reduce, raw, features, strict=True):
            norm = reduce.norm
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            expected = reduce.conv(source) * scale[:, None, None]
            expected += (norm.bias - norm.running_mean * scale)[:, None, None]
            torch.testing.assert_close(feature, expected, rtol=1e-4, atol=1e-4)
    assert min(f.min() for f in features) < 0


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        ("vit_tiny_patch16_224", r"has features at strides \[16, 16, 16\]; HyperSeg needs 4, 8, 16 and 32"),
        ("maxvit_nano_rw_256", "does not run at 64x96, and HyperSeg takes images of any size"),
        ("resnet18x", "timm has no model 'resnet18x'; similar names: .*resnet18"),
        ("efficientnet-b1", "timm has no model 'efficientnet-b1'; similar names: efficientnet_b1, "),
        ("ResNet_18", "timm has no model 'ResNet_18'; similar names: resnet18, "),
        ("mobilnetv3_smal_100", "similar names: mobilenetv3_small_100, "),
        ("no_such_thing", "timm has no model 'no_such_thing'; similar names: none"),
    ],
)
def test_unsuitable_encoders(encoder, message):
    with pytest.raises(ValueError, match=message):
        create_model("hyperseg-s", encoder=encoder)


def test_configuration_of_another_encoder_through_a_dict():
    config = create_model("hyperseg-s", num_classes=2, encoder="resnet18").config
    assert HyperSegConfig.from_dict(config.to_dict()) == config
