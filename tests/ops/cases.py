"""Test cases of every operator. ``hyperseg.verify.arguments`` builds their arguments."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from hyperseg.models.config import HyperSegConfig
from hyperseg.models.plan import decoder_plan
from hyperseg.models.variants import VARIANTS
from hyperseg.verify.arguments import (  # noqa: F401 - some are for the tests
    DTYPES,
    LAYOUTS,
    Case,
    batch_norm,
    block_weights,
    context,
    conv,
    convert,
    double,
    generators,
    level,
    level_weights,
    logits,
    loss,
    mbconv,
    mbconv_chain,
    normal,
    normalisation,
    outputs,
    pointwise,
    residual,
    stem,
)

EXACT = (torch.float32, torch.float64)
HALOS = ("own", "neighbour")


# ---------------------------------------------------------------------------------------------------------------------
# The five networks


def network_grid(index: int) -> tuple[int, int]:
    return (2, 3) if index < 4 else (1, 2)  # patches of 16x16 and 32x32 pixels are large enough


def networks():
    """Yield ``(variant, level index, level, generator, halo, decoder plan)`` of every decoder level."""
    for name, config in VARIANTS.items():
        plan = decoder_plan(config)
        for generator in plan.generators:
            for index in generator.levels:
                yield name.removeprefix("hyperseg-"), index, plan.levels[index], generator, config.halo, plan


def network_head(config: HyperSegConfig) -> Callable:
    """Return arguments for the head of an encoder with all reductions, on few pixels."""
    channels = {240: (16, 24, 40, 112, 320), 300: (24, 32, 48, 136, 384)}[config.static_padding_size]
    reductions = [
        (c, out, "none", (2 ** (5 - i), 3 * 2 ** (4 - i)))
        for i, (c, out) in enumerate(zip(channels, config.feature_channels, strict=True))
        if c != out
    ]
    return pointwise((channels[-1], config.head_channels, "silu", (2, 3)), *reductions, n=1, nhwc=True)


def network_cases() -> list[Case]:
    cases = []
    for variant, index, entry, generator, halo, plan in networks():
        name = f"{variant}-{index}"
        shape = {"grid": network_grid(index), "patch": (2**index, 2**index)}
        signal = (plan.used_channels, generator.offset, generator.channels, generator.groups, generator.rows)
        merged = len(generator.levels) > 1
        cases.append(
            Case(
                "decoder_level",
                name,
                level(
                    1,
                    entry.skip_channels,
                    entry.previous_channels,
                    entry.out_channels,
                    entry.hidden,
                    halo=halo,
                    signal=None if merged else signal,
                    spare=7 if merged else 0,
                    **shape,
                ),
            )
        )
        width = (1, entry.in_channels, entry.hidden, entry.out_channels)
        if entry.hidden:
            cases.append(Case("patch_inverted_residual", name, residual(*width, halo=halo, **shape)))
            cases.append(Case("patch_inverted_residual_batch_norm", name, batch_norm(*width, halo=halo, **shape)))
        else:
            cases.append(Case("patch_conv2d", name, conv(1, width[1], width[3], kernel=(1, 1), bias=False, **shape)))
    for variant, config in VARIANTS.items():
        width, padding = {240: (32, (0, 1, 0, 1)), 300: (40, (0, 1, 0, 1))}[config.static_padding_size]
        build = stem(1, width, padding=padding, frame=(30, 61), image=(32, 64))
        cases.append(Case("stem", variant.removeprefix("hyperseg-"), build))
        cases.append(Case("pointwise_conv", variant.removeprefix("hyperseg-"), network_head(config)))
        plan = decoder_plan(config)
        parts = tuple((g.offset, g.channels, g.groups, g.rows, g.size) for g in plan.generators)
        build = generators(1, plan.used_channels, (2, 3), parts)
        cases.append(Case("generate_weights", variant.removeprefix("hyperseg-"), build))
    return cases


# ---------------------------------------------------------------------------------------------------------------------
# The tables


def table(operator: str, **builds: Callable) -> list[Case]:
    return [Case(operator, name.replace("_", "-"), build) for name, build in builds.items()]


GENERATE_WEIGHTS = table(
    "generate_weights",
    one=generators(),
    grouped=generators(parts=((0, 12, 3, 9, 9),)),
    surplus_rows=generators(parts=((0, 12, 4, 12, 9),)),
    one_parameter=generators(parts=((0, 12, 4, 4, 1),)),
    range_inside=generators(parts=((3, 6, 2, 8, 7),)),
    several=generators(parts=((0, 4, 2, 6, 5), (4, 8, 1, 7, 7))),
    overlapping=generators(parts=((0, 12, 4, 8, 8), (0, 8, 2, 6, 5), (2, 3, 3, 3, 2))),
    one_patch=generators(1, grid=(1, 1)),
    one_row_of_patches=generators(grid=(1, 7), parts=((0, 12, 2, 10, 9),)),
    depthwise=generators(parts=((0, 12, 12, 24, 23),)),
    many_patches=generators(1, 12, (18, 16), ((0, 12, 2, 10, 9),)),
    many_generators=generators(1, 4, (1, 2), tuple((i % 3, 2, 1, 2, 2) for i in range(35))),
    several_blocks=generators(1, 84, (5, 14), ((0, 74, 2, 150, 149), (40, 44, 1, 70, 70))),
)

PATCH_CONV2D = [
    *table(
        "patch_conv2d",
        kernel_1=conv(kernel=(1, 1)),
        kernel_3=conv(),
        kernel_5=conv(kernel=(5, 5), patch=(3, 2)),
        kernel_1x3=conv(kernel=(1, 3)),
        kernel_3x1=conv(kernel=(3, 1), grid=(3, 2)),
        no_bias=conv(bias=False),
        patch_1=conv(patch=(1, 1)),
        patch_3x5=conv(patch=(3, 5), grid=(3, 2)),
        grid_1xN=conv(grid=(1, 5), patch=(3, 1)),
        grid_Nx1=conv(grid=(5, 1), patch=(1, 3)),
        one_patch=conv(1, grid=(1, 1), patch=(5, 7)),
        one_pixel=conv(1, grid=(1, 1), patch=(1, 1), kernel=(1, 1)),
        one_row_of_pixels=conv(grid=(1, 4), patch=(1, 3), kernel=(1, 1)),
        groups_2=conv(c=4, out=6, groups=2),
        depthwise=conv(c=4, out=4, groups=4),
        depthwise_multiplier=conv(c=3, out=6, groups=3),
        dilation_2=conv(dilation=(2, 2), patch=(3, 3)),
        dilation_1x3=conv(dilation=(1, 3), patch=(2, 3)),
        dilation_beyond_patch=conv(dilation=(3, 2), patch=(2, 2), kernel=(3, 3), grid=(3, 3)),
        wide_kernel_3=conv(1, 18, 20, (2, 1), (4, 5)),
        wide_kernel_3_groups_2=conv(1, 16, 20, (1, 2), (4, 4), groups=2, mode="replicate"),
        wide_several_blocks=conv(1, 40, 70, (1, 2), (9, 8), (1, 1)),
        dilated_kernel_5=conv(c=2, out=2, kernel=(5, 5), dilation=(2, 2), grid=(3, 3), patch=(3, 3)),
    ),
    *[
        Case("patch_conv2d", f"{mode}-{k}", conv(kernel=k_, groups=groups, c=4, patch=(2, 3), mode=mode))
        for mode in ("zeros", "replicate", "circular")
        for k, k_, groups in (("kernel-3", (3, 3), 1), ("kernel-5-groups-2", (5, 5), 2))
    ],
    Case("patch_conv2d", "circular-whole-map", conv(kernel=(5, 5), grid=(2, 2), patch=(1, 1), mode="circular")),
]


def _blocks(operator: str, build: Callable) -> list[Case]:
    return [
        case
        for halo in HALOS
        for case in (
            Case(operator, f"{halo}-patch-1", build(patch=(1, 1), halo=halo)),
            Case(operator, f"{halo}-patch-2", build(halo=halo)),
            Case(operator, f"{halo}-patch-3x5", build(patch=(3, 5), halo=halo)),
            Case(operator, f"{halo}-patch-1x2", build(patch=(1, 2), grid=(3, 2), halo=halo)),
            Case(operator, f"{halo}-grid-1x5", build(grid=(1, 5), patch=(2, 3), halo=halo)),
            Case(operator, f"{halo}-one-patch", build(n=1, grid=(1, 1), patch=(5, 7), halo=halo)),
            Case(operator, f"{halo}-two-patches", build(n=1, grid=(1, 2), patch=(9, 8), hidden=17, halo=halo)),
            Case(operator, f"{halo}-four-patches", build(grid=(2, 1), patch=(1, 3), halo=halo)),
            Case(operator, f"{halo}-smallest", build(n=1, c=1, hidden=1, out=1, grid=(2, 2), patch=(1, 1), halo=halo)),
            Case(operator, f"{halo}-odd-widths", build(n=1, c=7, hidden=13, out=19, patch=(4, 4), halo=halo)),
            Case(operator, f"{halo}-wide", build(c=20, hidden=150, out=70, grid=(1, 2), patch=(3, 2), halo=halo)),
            Case(operator, f"{halo}-large-patch", build(1, 8, 16, 8, grid=(1, 1), patch=(24, 22), halo=halo)),
        )
    ]


PATCH_INVERTED_RESIDUAL = [
    *_blocks("patch_inverted_residual", residual),
    *[
        Case("patch_inverted_residual", f"{halo}-no-bias", residual(grid=(1, 2), patch=(3, 2), halo=halo, bias=False))
        for halo in HALOS
    ],
]
BATCH_NORM = [
    *[c for c in _blocks("patch_inverted_residual_batch_norm", batch_norm) if not c.name.endswith("smallest")],
    *[
        Case("patch_inverted_residual_batch_norm", f"{halo}-large-eps", batch_norm(halo=halo, eps=0.1))
        for halo in HALOS
    ],
]

_SIGNAL = (20, 4, 12, 4, 12 * 8)
DECODER_LEVEL = [
    *table(
        "decoder_level",
        pointwise_weights=level(),
        pointwise_weights_first=level(previous=0),
        pointwise_weights_same_size=level(size=(8, 12)),
        pointwise_weights_odd_size=level(size=(3, 7)),
        pointwise_weights_larger_previous=level(size=(11, 25)),
        pointwise_weights_one_pixel_previous=level(size=(1, 1)),
        pointwise_weights_slice=level(spare=3),
        pointwise_signal=level(signal=_SIGNAL),
        pointwise_signal_first=level(previous=0, signal=_SIGNAL),
        pointwise_patch_1=level(patch=(1, 1), signal=_SIGNAL),
        pointwise_signal_patch_3x2=level(patch=(3, 2), signal=_SIGNAL),
        pointwise_many_channels=level(1, 900, 0, 33, grid=(1, 2), patch=(1, 1)),
        pointwise_grid_1x5=level(grid=(1, 5), patch=(3, 2)),
        pointwise_one_pixel=level(1, previous=0, grid=(1, 1), patch=(1, 1)),
        pointwise_one_row=level(grid=(1, 4), patch=(1, 3), size=(1, 5)),
    ),
    *[
        case
        for halo in HALOS
        for case in (
            Case("decoder_level", f"{halo}-weights", level(hidden=6, halo=halo)),
            Case("decoder_level", f"{halo}-weights-first", level(hidden=6, previous=0, halo=halo)),
            Case("decoder_level", f"{halo}-weights-same-size", level(hidden=6, size=(8, 12), halo=halo)),
            Case("decoder_level", f"{halo}-weights-odd-size", level(hidden=6, size=(5, 5), patch=(3, 5), halo=halo)),
            Case("decoder_level", f"{halo}-weights-slice", level(hidden=6, spare=5, halo=halo)),
            Case("decoder_level", f"{halo}-signal", level(hidden=6, signal=(20, 4, 12, 4, 140), halo=halo)),
            Case("decoder_level", f"{halo}-previous-1500-wide", level(1, 2, 1, hidden=6, size=(2, 1500), halo=halo)),
            Case("decoder_level", f"{halo}-patch-1", level(hidden=6, patch=(1, 1), halo=halo)),
            Case("decoder_level", f"{halo}-patch-7x9", level(1, hidden=14, grid=(1, 2), patch=(7, 9), halo=halo)),
            Case("decoder_level", f"{halo}-patch-9x16", level(1, hidden=6, grid=(1, 1), patch=(9, 16), halo=halo)),
            Case("decoder_level", f"{halo}-patch-3x17", level(1, hidden=6, grid=(2, 1), patch=(3, 17), halo=halo)),
            Case("decoder_level", f"{halo}-grid-1x5", level(hidden=6, grid=(1, 5), patch=(2, 3), halo=halo)),
            Case(
                "decoder_level",
                f"{halo}-four-patches-first",
                level(hidden=6, previous=0, grid=(1, 2), patch=(3, 4), halo=halo),
            ),
            Case(
                "decoder_level",
                f"{halo}-four-patches-signal",
                level(hidden=6, grid=(2, 1), patch=(3, 2), signal=(20, 4, 12, 4, 140), halo=halo),
            ),
        )
    ],
]

MBCONV = table(
    "mbconv",
    kernel_3=mbconv(),
    kernel_3_residual=mbconv(add=True),
    kernel_5=mbconv(size=5, out=5),
    kernel_7=mbconv(size=7, out=3),
    kernel_1=mbconv(size=1, squeezed=1),
    kernel_5_residual=mbconv(size=5, add=True, image=(1, 3)),
    stride_2=mbconv(stride=2),
    stride_2_static_padding=mbconv(stride=2, size=5, padding=(1, 2, 1, 2), image=(10, 12)),
    stride_2_below_only=mbconv(stride=2, padding=(0, 1, 0, 1), image=(8, 6)),
    stride_3_unpadded=mbconv(stride=3, padding=(0, 0, 0, 0)),
    not_expanded=mbconv(expand=False, out=4),
    not_expanded_residual=mbconv(expand=False, add=True),
    odd_channels=mbconv(c=3, hidden=19, out=3, add=True),
    several_chunks=mbconv(c=5, hidden=101, out=33),
    many_squeezed=mbconv(1, 4, 20, 6, squeezed=150),
    one_pixel=mbconv(image=(1, 1)),
    one_row=mbconv(image=(1, 20)),
    wide=mbconv(1, 4, 20, 6, image=(5, 300)),
    wide_stride_2=mbconv(1, 4, 20, 6, size=5, stride=2, image=(5, 301)),
    tall=mbconv(1, 4, 20, 6, size=5, image=(131, 6)),
    tall_stride_2=mbconv(1, 4, 20, 6, stride=2, image=(129, 6)),
    efficientnet_first=mbconv(1, 32, 32, 16, 8, expand=False, image=(24, 48)),
    efficientnet_middle=mbconv(1, 40, 240, 80, 10, stride=2, padding=(0, 1, 0, 1), image=(16, 32)),
    efficientnet_last=mbconv(1, 192, 1152, 192, 48, size=5, image=(4, 8), add=True),
    # Multiples of 8 channels in channels-last memory: the depthwise kernel expands them itself.
    nhwc=mbconv(image=(9, 19), add=True, nhwc=True),
    nhwc_kernel_5=mbconv(2, 40, 36, 8, size=5, image=(11, 34), nhwc=True),
    nhwc_stride_2=mbconv(2, 24, 70, 6, stride=2, padding=(0, 1, 0, 1), image=(18, 37), nhwc=True),
    nhwc_kernel_5_stride_2=mbconv(1, 72, 40, 8, size=5, stride=2, padding=(1, 2, 1, 2), image=(20, 40), nhwc=True),
    nhwc_unpadded=mbconv(1, 16, 32, 8, size=5, padding=(0, 0, 0, 0), image=(13, 21), nhwc=True),
    nhwc_deep=mbconv(1, 200, 40, 8, image=(9, 17), nhwc=True),
)

MBCONV_CHAIN = table(
    "mbconv_chain",
    single=mbconv_chain(mbconv()),
    kept=mbconv_chain(mbconv(add=True), mbconv(add=True), mbconv(out=5), kept=(0, 1)),
    nhwc=mbconv_chain(
        mbconv(2, 16, 48, 24, 4, image=(9, 19), nhwc=True),
        mbconv(2, 24, 72, 24, 6, 5, image=(9, 19), add=True),
        mbconv(2, 24, 144, 40, 6, 5, 2, (1, 2, 1, 2), (9, 19)),
        mbconv(2, 40, 120, 40, 10, image=(4, 9), add=True),
        kept=(1,),
    ),
    odd_channels=mbconv_chain(
        mbconv(1, 3, 19, 5, image=(12, 7)),
        mbconv(1, 5, 5, 7, 2, stride=2, image=(12, 7), expand=False),
        mbconv(1, 7, 101, 7, 9, 5, image=(6, 4), add=True),
    ),
    not_expanded=mbconv_chain(
        mbconv(1, 32, 32, 16, 8, image=(10, 20), expand=False, nhwc=True),
        mbconv(1, 16, 16, 16, 4, image=(10, 20), expand=False, add=True),
    ),
    one_pixel=mbconv_chain(
        mbconv(1, 16, 32, 16, image=(1, 1), nhwc=True), mbconv(1, 16, 32, 16, size=5, image=(1, 1), add=True)
    ),
    other_kernels=mbconv_chain(  # not all of these blocks are part of one launch
        mbconv(1, 8, 24, 8, image=(9, 11)),
        mbconv(1, 8, 24, 8, image=(9, 11), add=True),
        mbconv(1, 8, 24, 8, size=7, image=(9, 11)),
        mbconv(1, 8, 24, 6, size=1, stride=3, image=(9, 11)),
        mbconv(1, 6, 24, 6, squeezed=150, image=(3, 4)),
        mbconv(1, 6, 24, 8, image=(3, 4)),
        kept=(0, 3),
    ),
)

STEM = [
    *table(
        "stem",
        kernel_3=stem(stride=1, padding=(1, 1, 1, 1)),
        kernel_3_unpadded=stem(padding=(0, 0, 0, 0)),
        kernel_1=stem(size=1, stride=1, padding=(0, 0, 0, 0)),
        kernel_5=stem(size=5, padding=(1, 2, 1, 2)),
        kernel_7=stem(size=7, padding=(3, 3, 3, 3)),
        kernel_2=stem(size=2, padding=(1, 0, 1, 0)),
        kernel_3_stride_4=stem(stride=4),
        padding_of_two=stem(padding=(2, 2, 2, 2)),
        padding_before=stem(padding=(1, 0, 1, 0), frame=(8, 10)),
        repeated=stem(frame=(9, 13), image=(32, 32)),
        repeated_rows=stem(frame=(9, 12), image=(16, 12)),
        repeated_columns=stem(frame=(8, 13), image=(8, 16), padding=(1, 1, 1, 1)),
        one_pixel=stem(frame=(1, 1), image=(6, 7)),
        one_pixel_alone=stem(frame=(1, 1), padding=(1, 1, 1, 1)),
        one_row=stem(1, frame=(1, 20), padding=(1, 1, 1, 1)),
        one_column=stem(1, frame=(20, 1), padding=(1, 1, 1, 1)),
        odd_channels=stem(c=13),
        one_channel=stem(c=1),
        channels_40=stem(1, c=40, frame=(10, 11)),
        channels_72=stem(1, c=72, frame=(6, 7)),
        several_tiles=stem(1, frame=(19, 262), image=(20, 263)),
        several_tiles_float=stem(2, c=16, frame=(40, 70), padding=(1, 1, 1, 1)),
        wide=stem(1, 3, frame=(5, 300)),
        tall=stem(1, 3, frame=(131, 6)),
    ),
    *[Case("stem", f"frames-{name}", stem(layout=name)) for name in LAYOUTS if name != "dense"],
]

NORMALISE_FRAMES = [
    *table(
        "normalise_frames",
        same_size=normalisation(),
        padded=normalisation(image=(16, 32)),
        padded_rows=normalisation(frame=(5, 16), image=(7, 16)),
        one_pixel=normalisation(frame=(1, 1), image=(6, 7)),
        one_row=normalisation(1, frame=(1, 300)),
    ),
    *[Case("normalise_frames", f"frames-{name}", normalisation(layout=name)) for name in LAYOUTS if name != "dense"],
]

POINTWISE_CONV = table(
    "pointwise_conv",
    one=pointwise((6, 10, "none")),
    several=pointwise((6, 10, "none"), (24, 5, "silu", (3, 4)), (3, 16, "relu", (9, 2))),
    one_channel=pointwise((1, 1, "relu"), (7, 1, "silu")),
    one_pixel=pointwise((9, 20, "silu"), size=(1, 1)),
    more_than_a_launch=pointwise(*[(3 + i, 2 + i, "none") for i in range(11)], n=1, size=(2, 3)),
    deep=pointwise((200, 33, "relu"), n=1, size=(5, 9)),
    # Multiples of 8 channels in channels-last memory are copied in vectors.
    nhwc=pointwise((24, 6, "none"), (40, 10, "relu"), (112, 28, "silu"), (16, 72, "silu"), nhwc=True),
    nhwc_deep=pointwise((328, 136, "silu"), n=1, size=(9, 10), nhwc=True),
    nhwc_whole_chunks=pointwise((640, 77, "relu"), n=2, size=(7, 11), nhwc=True),
    nhwc_few_columns=pointwise((24, 5, "relu"), (40, 34, "silu"), (8, 1, "none"), size=(11, 13), nhwc=True),
    nhwc_many_pixels=pointwise((16, 4, "none"), n=2, size=(190, 180), nhwc=True),
)

CONTEXT_HEAD = table(
    "context_head",
    pyramid=context(),
    pyramid_odd=context(size=(5, 7)),
    pyramid_of_three=context(levels=3, size=(11, 9)),
    pyramid_one_pixel=context(levels=2, size=(1, 1)),
    unet=context(reduced=None),
    unet_odd=context(levels=2, reduced=None, size=(5, 7)),
    unet_one_row=context(levels=3, reduced=None, size=(1, 10)),
    nhwc_pyramid=context(1, 128, 2, 64, (9, 12), nhwc=True),
    nhwc_unet=context(2, 64, 2, None, (6, 7), nhwc=True),
    nhwc_unet_deep=context(1, 256, 1, None, (5, 4), nhwc=True),
)

UPSAMPLE_ARGMAX = table(
    "upsample_argmax",
    double=logits(),
    double_ties=logits(whole=True, size=(9, 7), to=(18, 14)),
    identity=logits(size=(7, 5), to=(7, 5)),
    identity_ties=logits(whole=True, size=(7, 5), to=(7, 5)),
    fourfold=logits(to=(24, 32)),
    ratio_13_to_29=logits(size=(13, 11), to=(29, 17)),
    downsizing=logits(size=(13, 18), to=(5, 7)),
    half_size=logits(size=(12, 18), to=(6, 9)),
    stretched=logits(size=(12, 5), to=(7, 21)),
    one_class=logits(classes=1),
    classes_256=logits(classes=256, size=(3, 4), to=(6, 8)),
    classes_256_ties=logits(classes=256, size=(3, 4), to=(6, 8), whole=True),
    one_pixel=logits(size=(1, 1), to=(5, 3)),
    to_one_pixel=logits(size=(5, 3), to=(1, 1)),
    one_row=logits(size=(1, 9), to=(2, 18)),
    one_column=logits(size=(9, 1), to=(18, 2)),
    cityscapes=logits(1, 19, (16, 32), (32, 64)),
    camvid=logits(2, 12, (18, 24), (36, 48)),
    pascal_voc=logits(1, 21, (32, 32), (33, 63)),
    cityscapes_ties=logits(1, 19, (16, 32), (32, 64), whole=True),
)

_BOOTSTRAPPED = {
    "bootstrap_few_above": loss(bootstrap=100, threshold=2.5),
    "bootstrap_many_above": loss(bootstrap=20, threshold=0.3),
    "bootstrap_more_than_pixels": loss(bootstrap=1000),
    "bootstrap_all_pixels": loss(bootstrap=143),
    "bootstrap_all_but_one": loss(bootstrap=142, threshold=0.0),
    "bootstrap_one": loss(bootstrap=1, threshold=100.0),
    "bootstrap_images_differ": loss(3, bootstrap=60, threshold=1.5),
    "bootstrap_many_pixels": loss(2, 3, (33, 40), (66, 80), bootstrap=2000, threshold=9.0),
    "bootstrap_weights_few_above": loss(bootstrap=100, threshold=2.5, weighted="all", ignore_index=-1),
    "bootstrap_weights_many_above": loss(bootstrap=20, threshold=0.3, weighted="some"),
    "bootstrap_weights_uint8": loss(bootstrap=60, weighted="some", labels_dtype=torch.uint8, strided=True),
}
UPSAMPLE_CROSS_ENTROPY = [
    *table(
        "upsample_cross_entropy",
        plain=loss(),
        plain_double=loss(size=(6, 8), to=(12, 16)),
        plain_identity=loss(size=(6, 8), to=(6, 8)),
        plain_downsizing=loss(size=(11, 13), to=(4, 6)),
        plain_downsizing_to_a_row=loss(size=(4, 13), to=(1, 5), ignored=0.0),
        plain_nearly_double=loss(1, 2, (9, 33), (17, 65)),
        plain_four_times_as_large=loss(1, 2, (3, 4), (12, 16)),
        plain_nothing_ignored=loss(ignored=0.0),
        plain_all_ignored=loss(ignored=1.1),
        plain_one_class=loss(classes=1),
        plain_one_pixel=loss(size=(1, 1), to=(1, 1), ignored=0.0),
        plain_large_logits=loss(scale=60.0),
        plain_weights=loss(weighted="all"),
        plain_weights_with_a_zero=loss(weighted="some", size=(6, 8), to=(12, 16)),
        plain_weights_of_zero=loss(weighted="none"),
        plain_weights_ignore_minus_100=loss(weighted="all", ignore_index=-100),
        plain_uint8_weights_ignore_a_class=loss(labels_dtype=torch.uint8, weighted="all", ignore_index=2),
        plain_uint8_ignore_minus_1=loss(labels_dtype=torch.uint8, ignored=0.0, ignore_index=-1),
        plain_strided=loss(strided=True, weighted="some"),
        plain_cityscapes=loss(1, 19, (16, 32), (32, 64)),
        bootstrap_all_ignored=loss(ignored=1.1, bootstrap=20),
        bootstrap_ties=loss(ties=True, ignored=0.0, bootstrap=30, threshold=3.0),
        bootstrap_ties_with_ignored=loss(ties=True, ignored=0.9, bootstrap=100, threshold=3.0),
        bootstrap_ties_above=loss(ties=True, bootstrap=30),
        bootstrap_weights_of_zero_below_0=loss(weighted="none", bootstrap=20, threshold=-1.0),
    ),
    # In 16-bit floats losses tie within rounding, so other pixels may be among the worst.
    *[Case("upsample_cross_entropy", k.replace("_", "-"), build, EXACT) for k, build in _BOOTSTRAPPED.items()],
]

# How a tile of logits gets to shared memory: rows as they are (an odd number of aligned channels), four channels at
# once, or value by value.
TILE_LAYOUTS = {
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "planar": lambda x: x,
    "sliced_channels": lambda x: torch.cat([x, x], 1).contiguous(memory_format=torch.channels_last)[:, : x.shape[1]],
    "sliced_rows": lambda x: torch.cat([x, x], 3).contiguous(memory_format=torch.channels_last)[..., : x.shape[3]],
    "not_aligned": lambda x: torch.cat([x[..., :1], x], 3).contiguous(memory_format=torch.channels_last)[..., 1:],
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
}

# Operators that return labels.
LABELLING = ("upsample_argmax", "decoder_level_argmax")


def labelled(levels: list[Case]) -> list[Case]:
    """Return decoder_level_argmax cases. Only a level's last step differs, so a few levels are enough."""
    names = ("-weights", "-weights-slice", "-signal", "-signal-first", "-four-patches-signal", "-patch-1")
    last = {variant: index for variant, index, *_ in networks()}
    ends = [f"{variant}-{index}" for variant, index in last.items()]
    found = [case for case in levels if case.name.endswith(names) or case.name in ends]
    return [Case("decoder_level_argmax", case.name, case.build) for case in found]


CASES = [
    *GENERATE_WEIGHTS,
    *PATCH_CONV2D,
    *PATCH_INVERTED_RESIDUAL,
    *BATCH_NORM,
    *DECODER_LEVEL,
    *MBCONV,
    *MBCONV_CHAIN,
    *STEM,
    *NORMALISE_FRAMES,
    *POINTWISE_CONV,
    *CONTEXT_HEAD,
    *UPSAMPLE_ARGMAX,
    *UPSAMPLE_CROSS_ENTROPY,
    *network_cases(),
]
CASES += labelled([case for case in CASES if case.operator == "decoder_level"])
BY_ID = {case.id: case for case in CASES}
assert len(BY_ID) == len(CASES)

# Triton's interpreter takes 0.2 ms per step, so a case with many blocks takes seconds. Of the operators in LISTED it
# runs the cases in INTERPRETED; their other cases are marked slow there. On GPUs all cases run compiled.
LISTED = ("patch_", "decoder_level", "generate_weights-")
INTERPRETED = (
    *(f"decoder_level-m-cityscapes-{i}" for i in range(4)),
    "decoder_level-pointwise-weights-odd-size",
    "decoder_level-pointwise-weights-slice",
    "decoder_level-pointwise-signal",
    "decoder_level-pointwise-signal-first",
    "decoder_level-pointwise-one-pixel",
    "decoder_level-own-four-patches-signal",
    "decoder_level-neighbour-four-patches-first",
    "decoder_level_argmax-own-four-patches-signal",
    *(f"generate_weights-{name}" for name in ("grouped", "overlapping", "one-parameter", "several-blocks")),
    "generate_weights-m-cityscapes",
    *(f"patch_conv2d-{name}" for name in ("kernel-1", "kernel-3", "kernel-1x3", "no-bias", "groups-2", "dilation-1x3")),
    *(f"patch_conv2d-{mode}-kernel-3" for mode in ("zeros", "replicate", "circular")),
    "patch_inverted_residual-own-two-patches",
    "patch_inverted_residual-own-four-patches",
    "patch_inverted_residual-own-one-patch",
    "patch_inverted_residual-neighbour-four-patches",
    "patch_inverted_residual-neighbour-no-bias",
    "patch_inverted_residual_batch_norm-own-four-patches",
    "patch_inverted_residual_batch_norm-neighbour-four-patches",
)
FORWARD_ONLY = ("cityscapes", "kernel-1", "zeros", "circular", "dilation")


def interpreted(case: Case, suffix: str = "") -> bool:
    """Whether Triton's interpreter runs the case, or its gradients (suffix ``"_backward"``), in a few seconds."""
    if case.id.startswith(LISTED):
        return case.id in INTERPRETED and not (suffix and any(part in case.name for part in FORWARD_ONLY))
    if case.operator == "upsample_cross_entropy" and suffix and "weights" in case.name:
        return False  # its gradient does not read the class weights, but the weights of pixels
    args = [t for a in case.arguments(torch.float32) for t in (a if isinstance(a, list) else [a])]
    return max(t.numel() for t in args if isinstance(t, Tensor)) <= 10_000 and "256" not in case.name


# One or two cases per operator, for tests that do not depend on shapes.
TYPICAL = [
    BY_ID[i]
    for i in (
        "generate_weights-overlapping",
        "patch_conv2d-kernel-3",
        "patch_conv2d-no-bias",
        "patch_inverted_residual-own-four-patches",
        "patch_inverted_residual-neighbour-no-bias",
        "patch_inverted_residual_batch_norm-own-four-patches",
        "patch_inverted_residual_batch_norm-neighbour-four-patches",
        "decoder_level-pointwise-weights",
        "decoder_level-own-four-patches-signal",
        "decoder_level-neighbour-four-patches-first",
        "decoder_level_argmax-own-four-patches-signal",
        "mbconv-kernel-3-residual",
        "mbconv-stride-2-static-padding",
        "mbconv_chain-kept",
        "stem-repeated-rows",
        "stem-kernel-3",
        "normalise_frames-padded",
        "pointwise_conv-several",
        "context_head-pyramid-odd",
        "context_head-unet-odd",
        "upsample_argmax-double",
        "upsample_cross_entropy-plain",
        "upsample_cross_entropy-plain-weights",
        "upsample_cross_entropy-bootstrap-few-above",
        "upsample_cross_entropy-bootstrap-weights-many-above",
    )
]


INFERENCE = ("context_head", "mbconv", "mbconv_chain", "normalise_frames", "pointwise_conv", "stem")


@cache
def differentiable(operator: str) -> tuple[int, ...]:
    """Return the positions of the differentiable arguments: the floating-point tensors in the operator's schema."""
    overload = getattr(torch.ops.hyperseg, operator).default
    types = [str(a.type) for a in overload._schema.arguments]
    found = tuple(i for i, kind in enumerate(types) if "Tensor" in kind)
    known = {**dict.fromkeys((*LABELLING, *INFERENCE), ()), "upsample_cross_entropy": (0,)}
    return known.get(operator, found)
