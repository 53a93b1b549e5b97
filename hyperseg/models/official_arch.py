"""The ``arch`` string of official checkpoints: a network as a Python call (SPEC A.4). It is parsed, never run."""

import ast
from collections.abc import Mapping
from typing import Any

from hyperseg.models.config import HyperSegConfig
from hyperseg.models.variants import VARIANTS

# Width factor, nominal image size and head dropout of the EfficientNets in the official factory (SPEC B.1).
_EFFICIENTNETS = {
    "efficientnet-b0": (1.0, 224, 0.2),
    "efficientnet-b1": (1.0, 240, 0.2),
    "efficientnet-b2": (1.1, 260, 0.3),
    "efficientnet-b3": (1.2, 300, 0.3),
    "efficientnet-b4": (1.4, 380, 0.4),
    "efficientnet-b5": (1.6, 456, 0.4),
    "efficientnet-b6": (1.8, 528, 0.5),
    "efficientnet-b7": (2.0, 600, 0.5),
}
_STAGE_CHANNELS = (16, 24, 40, 112, 320)
_FACTORY = "hyperseg_efficientnet"
MODULES = ("hyperseg_v1_0", "hyperseg_v1_0_unify", "hyperseg_v0_1")

# Options with the same value in all published networks; another value gives a network that is not supported.
_FIXED = {
    "in_nc": 3,
    "level_layers": 1,
    "groups": 1,
    "decoder_groups": 1,
    "with_out_fc": False,
    "avg_pool": True,
    "down_groups": 1,
    "flat_groups": 1,
}
_IGNORED = {"pretrained", "inference_hflip", "inference_gather", "decoder_dropout", "coords_res"}
_USED = {
    *("model_name", "levels", "kernel_sizes", "level_channels", "expand_ratio", "weight_groups", "num_classes"),
    *("out_feat_scale", "unify_level"),
}
_COORDINATES = {
    "hyperseg-s-camvid": [(576, 576), (576, 768)],
    "hyperseg-l-camvid": [(768, 768), (768, 1024)],
    "hyperseg-m-cityscapes": [(512, 512), (512, 1024)],
    "hyperseg-s-cityscapes": [(768, 768), (768, 1536)],
}


def parse(arch: str) -> HyperSegConfig:
    """Return the configuration that an ``arch`` string describes. Nothing in it is evaluated.

    Raises:
        ValueError: it is not a call of one of the three known factories with literal arguments that fit together.
    """
    module, arguments = _parse_call(arch)
    unknown = sorted(set(arguments) - _USED - _IGNORED - set(_FIXED))
    if unknown:
        raise ValueError(f"its arch has the unknown arguments {', '.join(unknown)}")
    for name, value in _FIXED.items():
        if arguments.get(name, value) != value:
            raise ValueError(f"its arch sets {name}={arguments[name]!r}; only {value!r} is supported")
    try:
        return _published(_config(module, arguments))
    except KeyError as error:
        raise ValueError(f"its arch lacks the argument {error}") from error
    except (TypeError, ArithmeticError) as error:
        raise ValueError(f"its arch has an argument of the wrong kind: {error}") from error


def _parse_call(arch: str) -> tuple[str, dict[str, Any]]:
    try:
        call = ast.parse(arch, mode="eval").body
        assert isinstance(call, ast.Call)
        factory = ast.unparse(call.func)
    except (SyntaxError, ValueError, AssertionError, RecursionError, MemoryError):
        raise ValueError(f"its arch is not a function call: {arch[:100]!r}") from None
    known = {f"hyperseg.models.{module}.{_FACTORY}": module for module in MODULES}
    if factory not in known:
        raise ValueError(f"its arch calls {factory[:100]!r}, which is none of {', '.join(known)}")
    try:
        positional = [ast.literal_eval(argument) for argument in call.args]
        arguments = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (ValueError, TypeError, SyntaxError):
        raise ValueError(f"its arch has arguments that are not literals: {arch[:200]!r}") from None
    if len(positional) > 1:
        raise ValueError(f"its arch has {len(positional)} positional arguments, expected the encoder's name alone")
    if positional:
        arguments["model_name"] = positional[0]
    return known[factory], arguments


def _round_filters(channels: int, width: float) -> int:
    scaled = channels * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


def _config(module: str, arguments: Mapping[str, Any]) -> HyperSegConfig:
    if arguments["model_name"] not in _EFFICIENTNETS:
        raise ValueError(
            f"its arch names the encoder {arguments['model_name']!r}; known are {', '.join(_EFFICIENTNETS)}"
        )
    width, nominal, dropout = _EFFICIENTNETS[arguments["model_name"]]
    channels = [_round_filters(c, width) for c in _STAGE_CHANNELS]
    scales = arguments.get("out_feat_scale", 0.25)
    scales = [scales] * 5 if isinstance(scales, int | float) else scales
    features = tuple(round(c * s) for c, s in zip(channels, scales, strict=True))
    kernel_sizes = tuple(arguments["kernel_sizes"])
    legacy = module == "hyperseg_v0_1"
    merged_from = arguments["unify_level"] - 1 if module == "hyperseg_v1_0_unify" else None
    groups = arguments["weight_groups"]
    if legacy:
        level_channels = features[::-1][: len(kernel_sizes) - 1]
        groups = [groups] * len(kernel_sizes)
    else:
        level_channels = tuple(arguments["level_channels"])[: len(kernel_sizes) - 1]
        groups = groups if merged_from is None else groups[: merged_from + 1]
    return HyperSegConfig(
        name="hyperseg-custom",
        dataset="custom",
        num_classes=arguments["num_classes"],
        resolution=(512, 512),
        encoder="tf_" + arguments["model_name"].replace("-", "_"),
        feature_channels=features,
        head_channels=_round_filters(1280, width),
        context="unet" if legacy else "pyramid",
        context_levels=arguments["levels"],
        kernel_sizes=kernel_sizes,
        level_channels=tuple(level_channels),
        weight_groups=tuple(groups),
        signal_ranges="overlapping" if module == "hyperseg_v1_0" else "disjoint",
        division="legacy" if legacy else "remainder",
        halo="neighbour" if legacy else "own",
        expand_ratio=arguments["expand_ratio"],
        merged_from=merged_from,
        static_padding_size=nominal,
        head_dropout=dropout,
    )


def _published(config: HyperSegConfig) -> HyperSegConfig:
    """Return the published configuration of the same structure if there is one, as a custom one for other classes."""
    for variant in VARIANTS.values():
        same = config.replace(
            name=variant.name, dataset=variant.dataset, num_classes=variant.num_classes, resolution=variant.resolution
        )
        if same == variant:
            if config.num_classes == variant.num_classes:
                return variant
            return variant.replace(num_classes=config.num_classes, dataset="custom")
    return config


def module_of(config: HyperSegConfig) -> str:
    """Return the name of the official module that builds this network.

    Raises:
        ValueError: there is none.
    """
    kinds = {
        ("pyramid", "overlapping", "remainder", "own", False): "hyperseg_v1_0",
        ("pyramid", "disjoint", "remainder", "own", True): "hyperseg_v1_0_unify",
        ("unet", "disjoint", "legacy", "neighbour", False): "hyperseg_v0_1",
    }
    merged = config.merged_from is not None
    kind = (config.context, config.signal_ranges, config.division, config.halo, merged)
    if kind not in kinds or config.static_padding_size is None:
        raise ValueError(
            f"the official code has no network like {config.name!r}: its encoder is {config.encoder} and its decoder "
            f"is {config.context}, {config.signal_ranges}, {config.division}, {config.halo}"
        )
    return kinds[kind]


def coordinate_sizes(config: HyperSegConfig) -> list[tuple[int, int]]:
    """Return the (H, W) for which the official network caches coordinates in its state (SPEC F); v0_1 has none."""
    if config.halo == "neighbour":
        return []
    return _COORDINATES.get(config.name, [config.resolution])


def write(config: HyperSegConfig) -> str:
    """Return the ``arch`` string of a configuration, without spaces, as the official trainer writes it.

    Raises:
        ValueError: the official code has no such network.
    """
    module = module_of(config)
    name = config.encoder.removeprefix("tf_").replace("_", "-")
    channels = [_round_filters(c, _EFFICIENTNETS[name][0]) for c in _STAGE_CHANNELS]
    legacy = module == "hyperseg_v0_1"
    arguments: dict[str, Any] = {"pretrained": True, "levels": config.context_levels}
    if any(round(c * 0.25) != f for c, f in zip(channels, config.feature_channels, strict=True)):
        arguments["out_feat_scale"] = [round(f / c, 3) for f, c in zip(config.feature_channels, channels, strict=True)]
    arguments["kernel_sizes"] = config.kernel_sizes
    if not legacy:
        # The official configurations list one more than the network uses.
        arguments["level_channels"] = [*config.level_channels, config.level_channels[-1]]
    arguments["expand_ratio"] = config.expand_ratio
    arguments |= {"inference_hflip": True, "with_out_fc": False, "decoder_dropout": None}
    arguments["weight_groups"] = config.weight_groups[0] if legacy else list(config.weight_groups)
    if config.merged_from is not None:
        arguments["unify_level"] = config.merged_from + 1
    if not legacy:
        arguments["coords_res"] = coordinate_sizes(config)
    arguments["num_classes"] = config.num_classes
    listed = ",".join(f"{key}={value!r}" for key, value in arguments.items())
    return f"hyperseg.models.{module}.{_FACTORY}({name!r},{listed})".replace(" ", "")
