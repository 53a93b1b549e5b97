"""Declarations of augmentations, and those of the five published networks (SPEC A.2 and A.3)."""

from dataclasses import dataclass

Size = tuple[int, int]  # height, width


@dataclass(frozen=True)
class ColorJitter:
    """Largest changes of colours, as torchvision's ColorJitter takes them.

    brightness, contrast, saturation: the factor is uniform in [max(0, 1 - value), 1 + value].
    hue: the shift is uniform in [-value, value], as a share of the circle; at most 0.5.
    before_padding: colours change before the image is padded, so that padding stays black and does not count for the
        mean that contrast is relative to. Else padding is changed like the image.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    before_padding: bool = False

    def __post_init__(self) -> None:
        if min(self.brightness, self.contrast, self.saturation, self.hue) < 0 or self.hue > 0.5:
            raise ValueError(f"{self} has a value below 0 or a hue above 0.5")


@dataclass(frozen=True)
class Augmentation:
    """Random changes of an image and its labels, from any size to one size.

    Args:
        size: (height, width) of the result.
        scale: range of the factor that both sides are resized by; None: never resized.
        scale_probability: share of the samples that are resized.
        crop: True: a random window; an image that is smaller than `size` is at a random place in it. False: the image
            is in the upper left corner, padded at the right and at the bottom; one that is larger is an error.
        rotation: largest angle in degrees, to either side.
        flip: share of the samples that are mirrored.
        jitter: of the colours.

    Padding is black and has the label that is ignored. Raises ValueError for settings that make no sense.
    """

    size: Size
    scale: tuple[float, float] | None = None
    scale_probability: float = 0.5
    crop: bool = True
    rotation: float = 0.0
    flip: float = 0.5
    jitter: ColorJitter | None = None

    def __post_init__(self) -> None:
        if min(self.size) < 1:
            raise ValueError(f"size is {self.size}; give (height, width), both 1 or more")
        if self.scale is not None and not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale is {self.scale}; give (smallest, largest), both above 0")
        if not (0 <= self.scale_probability <= 1 and 0 <= self.flip <= 1):
            raise ValueError("scale_probability and flip are shares of the samples; give 0 to 1")
        if not 0 <= self.rotation <= 180:
            raise ValueError(f"rotation is {self.rotation}; give 0 to 180 degrees")
        if self.rotation and self.crop:
            raise ValueError("a rotated image cannot be cropped at random; give crop=False")


@dataclass(frozen=True)
class EvalResize:
    """How images are prepared for validation during training.

    size: (height, width) of the result.
    filter: "bilinear", "bicubic", or "pad": not resized, but padded at the right and at the bottom up to `size`.
    labels: also resize the labels, to the nearest; else they keep their size, and logits are to be resized to it.
    """

    size: Size
    filter: str = "bilinear"
    labels: bool = False

    def __post_init__(self) -> None:
        if self.filter not in ("bilinear", "bicubic", "pad"):
            raise ValueError(f"there is no filter {self.filter!r}; give bilinear, bicubic or pad")


@dataclass(frozen=True)
class Recipe:
    """The augmentation that a network was trained with, and how its validation images were prepared."""

    augmentation: Augmentation
    evaluation: EvalResize


RECIPES = {
    "hyperseg-s-camvid": Recipe(
        Augmentation((576, 576), scale=(0.5, 2.0)),
        EvalResize((576, 768), "bicubic", labels=True),
    ),
    "hyperseg-l-camvid": Recipe(
        Augmentation((768, 768), scale=(0.75, 2.0)),
        EvalResize((768, 1024), "bicubic", labels=True),
    ),
    "hyperseg-m-cityscapes": Recipe(
        Augmentation((512, 1024), scale=(0.25, 2.0)),
        EvalResize((512, 1024)),
    ),
    "hyperseg-s-cityscapes": Recipe(
        Augmentation((768, 768), scale=(0.375, 1.5), jitter=ColorJitter(0.25, 0.25, 0.25, 0.25)),
        EvalResize((768, 1536)),
    ),
    "hyperseg-l-voc": Recipe(
        Augmentation(
            (512, 512),
            scale=(0.25, 0.9),
            crop=False,
            rotation=30.0,
            jitter=ColorJitter(0.5, 0.5, 0.5, 0.5, before_padding=True),
        ),
        EvalResize((512, 512), "pad", labels=True),
    ),
}
