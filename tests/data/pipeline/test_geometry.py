"""Windows of resized images against whole resized images; padding, rotation, and what is refused."""

from dataclasses import replace
from fractions import Fraction
from math import floor

import numpy as np
import pytest
from PIL import Image

from hyperseg.data.pipeline.geometry import SizeError, Window, augment, for_evaluation, resize_image, window
from hyperseg.data.pipeline.recipes import Augmentation, ColorJitter, EvalResize
from hyperseg.data.pipeline.samples import Draws, Sampler

IGNORED = 255
DRAWS = Draws(*[0.5] * len(Draws._fields))


def pair(height, width, seed=0):
    generator = np.random.default_rng(seed)
    image = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    labels = generator.integers(0, 19, (height, width), dtype=np.uint8)
    for array in (image, labels):
        array.flags.writeable = False  # as those of a cache
    return image, labels


def run(image, labels, augmentation, draws, masked=False):
    size = augmentation.size
    out = np.full((*size, 3), 77, np.uint8), np.full(size, 77, np.uint8), np.full(size, 77, np.uint8)
    augment(image, labels, augmentation, draws, IGNORED, out if masked else (*out[:2], None))
    return out


def whole_labels(labels, resized):
    """The label of the source pixel under each pixel's centre."""
    rows, columns = (
        [floor((i + Fraction(1, 2)) * Fraction(length, new)) for i in range(new)]
        for length, new in zip(labels.shape, resized, strict=True)
    )
    return labels[np.ix_(rows, columns)]


@pytest.mark.parametrize("size", [(40, 60), (97, 131), (33, 260)], ids=str)
@pytest.mark.parametrize("number", range(12))
def test_a_sample_is_a_window_of_the_whole_resized_image(size, number):
    image, labels = pair(*size, seed=number)
    augmentation = Augmentation((48, 64), (0.25, 2.0), scale_probability=1.0)
    draws = Sampler(1, 8).sample(number).draws
    scale = 0.25 + 1.75 * draws.scale
    resized = tuple(np.round(np.array(size) * scale).astype(int))
    # The official crop: pad both sides by all that is missing, then cut out a window at a random place.
    padding = [(max(0, 48 - resized[0]),) * 2, (max(0, 64 - resized[1]),) * 2]
    padded_labels = np.pad(whole_labels(labels, resized), padding, constant_values=IGNORED)
    # One axis at a time: in one call, versions of Pillow differ in their order.
    wide = Image.fromarray(image).resize((resized[1], size[0]), Image.Resampling.BICUBIC)
    whole = np.asarray(wide.resize(resized[::-1], Image.Resampling.BICUBIC))
    padded = np.pad(whole, [*padding, (0, 0)])
    top, left = (
        int(draw * (length - target + 1))
        for draw, length, target in zip((draws.top, draws.left), padded_labels.shape, (48, 64), strict=True)
    )
    pixels, classes, _ = run(image, labels, augmentation, draws)
    np.testing.assert_array_equal(classes, padded_labels[top : top + 48, left : left + 64])
    error = np.abs(pixels.astype(int) - padded[top : top + 48, left : left + 64])
    assert error.max() <= 2
    assert error.mean() < 0.05  # values that are near a rounding tie


def test_without_resizing_pixels_are_copied():
    image, labels = pair(50, 70)
    augmentation = Augmentation((20, 30), (0.25, 2.0), scale_probability=0.5)
    draws = DRAWS._replace(resized=0.5, top=0.999999, left=0.0)
    pixels, classes, _ = run(image, labels, augmentation, draws)
    np.testing.assert_array_equal(pixels, image[30:, :30])
    np.testing.assert_array_equal(classes, labels[30:, :30])
    for scale in (None, (1.0, 1.0)):
        resized = run(image, labels, replace(augmentation, scale=scale), draws._replace(resized=0.0))
        np.testing.assert_array_equal(resized[0], pixels)


def test_a_small_image_is_anywhere_in_the_window():
    image, labels = pair(5, 6)
    found = set()
    for step in range(100):
        draws = DRAWS._replace(top=step / 100, left=(step * 7 % 100) / 100)
        pixels, classes, _ = run(image, labels, Augmentation((8, 10)), draws)
        (top, left), content = np.argwhere(classes != IGNORED)[0], classes != IGNORED
        assert content.sum() == 30
        np.testing.assert_array_equal(classes[top : top + 5, left : left + 6], labels)
        np.testing.assert_array_equal(pixels[top : top + 5, left : left + 6], image)
        assert not pixels[~content].any()
        found.add((top, left))
    assert {top for top, _ in found} == {0, 1, 2, 3}
    assert {left for _, left in found} == {0, 1, 2, 3, 4}


def test_sizes_round_half_to_even():
    augmentation = Augmentation((8, 8), (0.5, 0.5), scale_probability=1.0)
    assert window((5, 7), augmentation, DRAWS).resized == (2, 4)
    assert window((1, 9), augmentation, DRAWS).resized == (1, 4)  # never 0


def test_padding_at_the_right_and_at_the_bottom():
    image, labels = pair(5, 6)
    augmentation = Augmentation((8, 10), crop=False, jitter=ColorJitter(0.1, before_padding=True))
    pixels, classes, inside = run(image, labels, augmentation, DRAWS, masked=True)
    np.testing.assert_array_equal(pixels, np.pad(image, ((0, 3), (0, 4), (0, 0))))
    np.testing.assert_array_equal(classes, np.pad(labels, ((0, 3), (0, 4)), constant_values=IGNORED))
    np.testing.assert_array_equal(inside, np.pad(np.ones_like(labels), ((0, 3), (0, 4))))
    # The whole result is mirrored later, after which the padding is at the right again.
    pixels, classes, inside = run(image, labels, augmentation, DRAWS._replace(flip=0.49), masked=True)
    np.testing.assert_array_equal(pixels, np.pad(image, ((0, 3), (4, 0), (0, 0))))
    np.testing.assert_array_equal(classes, np.pad(labels, ((0, 3), (4, 0)), constant_values=IGNORED))
    np.testing.assert_array_equal(inside, np.pad(np.ones_like(labels), ((0, 3), (4, 0))))
    with pytest.raises(SizeError, match=r"is 9x6 .* after it was resized, but is to be padded to 8x10"):
        run(*pair(9, 6), augmentation, DRAWS)


@pytest.mark.parametrize(("draw", "turns"), [(0.75, 1), (1.0, 2), (0.25, 3)])
def test_rotation_by_right_angles(draw, turns):
    image, labels = pair(12, 12)
    augmentation = Augmentation((16, 16), crop=False, rotation=180.0)
    pixels, classes, _ = run(image, labels, augmentation, DRAWS._replace(angle=draw))
    np.testing.assert_array_equal(pixels[:12, :12], np.rot90(image, turns))
    np.testing.assert_array_equal(classes[:12, :12], np.rot90(labels, turns))
    assert (classes[12:] == IGNORED).all()


def test_vacated_corners_are_ignored():
    image, labels = np.full((40, 40, 3), 200, np.uint8), np.full((40, 40), 3, np.uint8)
    augmentation = Augmentation((50, 50), crop=False, rotation=45.0)
    pixels, classes, inside = run(image, labels, augmentation, DRAWS._replace(angle=1.0), masked=True)
    assert set(np.unique(classes)) == {3, IGNORED}
    np.testing.assert_array_equal(inside == 1, classes == 3)
    vacated = 40 * 40 - (classes == 3).sum()
    assert vacated == pytest.approx(4 * (20 * (2**0.5 - 1)) ** 2, rel=0.1)  # four right-angled triangles
    assert not pixels[0, 0].any()
    assert (pixels[20, 20] == 200).all()


def test_preparation_for_validation():
    image, labels = pair(30, 40)
    same = for_evaluation(image, labels, EvalResize((30, 40)), IGNORED)
    np.testing.assert_array_equal(same[0], image)
    assert same[1] is labels
    for name, method in (("bilinear", Image.Resampling.BILINEAR), ("bicubic", Image.Resampling.BICUBIC)):
        pixels, classes = for_evaluation(image, labels, EvalResize((20, 30), name, labels=True), IGNORED)
        expected = np.asarray(Image.fromarray(image).resize((30, 20), method)).astype(int)
        assert np.abs(pixels - expected).max() <= 2
        np.testing.assert_array_equal(classes, whole_labels(labels, (20, 30)))
    pixels, classes = for_evaluation(image, labels, EvalResize((32, 48), "pad", labels=True), IGNORED)
    np.testing.assert_array_equal(pixels, np.pad(image, ((0, 2), (0, 8), (0, 0))))
    np.testing.assert_array_equal(classes, np.pad(labels, ((0, 2), (0, 8)), constant_values=IGNORED))
    assert for_evaluation(image, labels, EvalResize((32, 48), "pad"), IGNORED)[1] is labels
    with pytest.raises(SizeError):
        for_evaluation(image, labels, EvalResize((32, 32), "pad"), IGNORED)


def test_only_the_part_that_a_window_needs_is_read():
    image, _ = pair(64, 64)
    augmentation = Augmentation((16, 16), (2.0, 2.0), scale_probability=1.0)
    place: Window = window((64, 64), augmentation, DRAWS._replace(top=0.5, left=0.5))
    expected = resize_image(image, place, "bicubic")
    changed = image.copy()
    changed[:20], changed[44:], changed[:, :20], changed[:, 44:] = 0, 0, 0, 0
    np.testing.assert_array_equal(resize_image(changed, place, "bicubic"), expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": (0, 5)}, "size is"),
        ({"scale": (0.0, 1.0)}, "scale is"),
        ({"scale": (2.0, 1.0)}, "scale is"),
        ({"flip": 1.5}, "shares of the samples"),
        ({"rotation": -1.0, "crop": False}, "0 to 180 degrees"),
        ({"rotation": 5.0}, "give crop=False"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**{"size": (8, 8), **settings})
    with pytest.raises(ValueError, match="hue above"):
        ColorJitter(hue=0.6)
    with pytest.raises(ValueError, match="no filter 'area'"):
        EvalResize((8, 8), "area")
