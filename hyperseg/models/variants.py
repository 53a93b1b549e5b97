"""The five published networks (SPEC A.1) and their published figures."""

from dataclasses import dataclass
from typing import Any

from hyperseg.models.config import HyperSegConfig

_B1: dict[str, Any] = {
    "encoder": "tf_efficientnet_b1",
    "static_padding_size": 240,
    "head_channels": 1280,
    "head_dropout": 0.2,
}
_V1_0: dict[str, Any] = {
    "context": "pyramid",
    "context_levels": 2,
    "signal_ranges": "overlapping",
    "division": "remainder",
    "halo": "own",
}

VARIANTS: dict[str, HyperSegConfig] = {
    config.name: config
    for config in (
        HyperSegConfig(
            name="hyperseg-m-cityscapes",
            dataset="cityscapes",
            num_classes=19,
            resolution=(512, 1024),
            feature_channels=(16, 6, 10, 28, 80),
            kernel_sizes=(1, 1, 1, 3, 3),
            level_channels=(64, 32, 16, 16),
            weight_groups=(32, 16, 8, 16, 4),
            **_B1,
            **_V1_0,
        ),
        HyperSegConfig(
            name="hyperseg-s-cityscapes",
            dataset="cityscapes",
            num_classes=19,
            resolution=(768, 1536),
            feature_channels=(16, 4, 8, 28, 128),
            kernel_sizes=(1, 1, 1, 3, 3),
            level_channels=(32, 16, 8, 8),
            weight_groups=(32, 16, 8, 16),
            merged_from=3,
            **_B1,
            **(_V1_0 | {"signal_ranges": "disjoint"}),
        ),
        HyperSegConfig(
            name="hyperseg-s-camvid",
            dataset="camvid",
            num_classes=12,
            resolution=(576, 768),
            feature_channels=(4, 6, 10, 28, 80),
            kernel_sizes=(1, 1, 1, 3, 3),
            level_channels=(64, 32, 16, 16),
            weight_groups=(64, 32, 32, 16, 8),
            **_B1,
            **_V1_0,
        ),
        HyperSegConfig(
            name="hyperseg-l-camvid",
            dataset="camvid",
            num_classes=12,
            resolution=(768, 1024),
            feature_channels=(4, 6, 10, 28, 80),
            kernel_sizes=(1, 1, 1, 3, 3, 3),
            level_channels=(64, 32, 16, 16, 16),
            weight_groups=(64, 32, 32, 16, 8, 8),
            **_B1,
            **_V1_0,
        ),
        HyperSegConfig(
            name="hyperseg-l-voc",
            dataset="voc",
            num_classes=21,
            resolution=(512, 512),
            encoder="tf_efficientnet_b3",
            static_padding_size=300,
            feature_channels=(6, 8, 12, 34, 96),
            head_channels=1536,
            head_dropout=0.3,
            context="unet",
            context_levels=3,
            kernel_sizes=(1, 1, 3, 3, 3, 3),
            level_channels=(96, 34, 12, 8, 6),
            weight_groups=(16, 16, 16, 16, 16, 16),
            signal_ranges="disjoint",
            division="legacy",
            halo="neighbour",
        ),
    )
}

ALIASES = {
    "hyperseg-s": "hyperseg-s-cityscapes",
    "hyperseg-m": "hyperseg-m-cityscapes",
    "hyperseg-l": "hyperseg-l-voc",
}


@dataclass(frozen=True)
class Published:
    """Figures reported by the authors (paper tables 2 to 4; FPS on a GTX 1080 Ti), not measured by this project."""

    miou_val: float | None
    miou_test: float | None
    fps: float | None
    weights: str | None  # the file that the authors released; None if they did not


PUBLISHED = {
    "hyperseg-m-cityscapes": Published(76.2, 75.8, 36.9, "cityscapes_efficientnet_b1_hyperseg-m.pth"),
    "hyperseg-s-cityscapes": Published(78.2, 78.1, 16.1, "cityscapes_efficientnet_b1_hyperseg-s.pth"),
    "hyperseg-s-camvid": Published(None, 78.4, 38.0, "camvid_efficientnet_b1_hyperseg-s.pth"),
    "hyperseg-l-camvid": Published(None, 79.1, 16.6, None),
    "hyperseg-l-voc": Published(80.6, None, None, "vocsbd_efficientnet_b3_hyperseg-l.pth"),
}


def list_models() -> list[str]:
    """Return the names of the published networks; ``hyperseg-s``, ``-m`` and ``-l`` are aliases of three of them."""
    return sorted(VARIANTS)


def model_config(name: str) -> HyperSegConfig:
    """Return the configuration of a published network, by name or alias.

    Raises:
        ValueError: no network has this name; the message lists the names.
    """
    name = ALIASES.get(name, name)
    if name not in VARIANTS:
        short = ", ".join(f"{alias} ({full})" for alias, full in ALIASES.items())
        raise ValueError(f"There is no network {name!r}; choose from {', '.join(list_models())}, or for short {short}.")
    return VARIANTS[name]
