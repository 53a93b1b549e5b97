"""Computed scenes: bitwise the same everywhere, exact labels, options, and nothing kept in memory."""

import hashlib
import math
import pickle
import re
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest

from hyperseg.data.dataset import manifest_hash
from hyperseg.data.errors import DataError
from hyperseg.data.labels import CITYSCAPES
from hyperseg.data.registry import open_dataset
from hyperseg.data.synthetic.canvas import CLASS, MIDDLE, Canvas
from hyperseg.data.synthetic.numbers import Random
from hyperseg.data.synthetic.scene import choose_light


def scenes(split="train", **options):
    return open_dataset("synthetic", "-", split, **{"images": 8, "size": (96, 192), **options})


# A change of these numbers changes the data of everyone: raise _VERSION in hyperseg/data/synthetic/dataset.py with it.
PINNED = [
    ("train", (96, 192), 0, 0, "f3ca941369a3a154acf16afbd3952cc25e1742c21e9d720b76a796a3d1d08e27"),
    ("train", (96, 192), 0, 7, "a69db48734d8ef17caf6f2b9196a04d96ae36afd1558af10e3b00f3876481ee9"),
    ("val", (120, 90), 5, 1, "0e110cbb0593b36e9bf12c33bd71a74e31ba11508373c0eecec1f542b09e752e"),
    ("test", (64, 64), -1, 2, "9132d2c70922a377dceca80a4ab387f587fcac2a1e91d813504e34e8786fbcba"),
]


@pytest.mark.parametrize(("split", "size", "seed", "index", "digest"), PINNED)
def test_scenes_are_bitwise_the_same_everywhere(split, size, seed, index, digest):
    data = scenes(split, size=size, seed=seed)
    image, labels = data.sample(index)
    assert (image.dtype, image.shape) == (np.uint8, (*size, 3))
    assert (labels.dtype, labels.shape) == (np.uint8, size)
    assert hashlib.sha256(image.tobytes() + labels.tobytes()).hexdigest() == digest


def test_a_scene_does_not_depend_on_what_was_drawn_before():
    data, other = scenes(), scenes(images=20)
    expected = [data.sample(index) for index in range(8)]
    for index in (7, 0, 3):
        for found in (other.sample(index), pickle.loads(pickle.dumps(data)).sample(index)):
            assert all((a == b).all() for a, b in zip(found, expected[index], strict=True))
    with ThreadPoolExecutor(4) as pool:
        for found, (_, labels) in zip(pool.map(data.labels, range(8)), expected, strict=True):
            assert (found == labels).all()
    subset = data.subset([6, 2])
    assert [item.name for item in subset.items] == ["train_0_000002", "train_0_000006"]
    assert (subset.image(1) == expected[6][0]).all()


def test_splits_seeds_and_indices_differ():
    images = [scenes("train"), scenes("val"), scenes("test"), scenes("train", seed=1)]
    assert len({data.image(index).tobytes() for data in images for index in range(2)}) == 8


def test_every_class_occurs_and_ignored_pixels_are_few():
    data = scenes(images=80, size=(64, 128))
    counts = np.zeros(256, np.int64)
    for index in range(80):
        counts += np.bincount(data.labels(index).ravel(), minlength=256)
        assert int(data._canvas(index).pixels.max()) < 2**16 - 1000  # a shade below 0 would wrap around
    assert (counts[:19] > 0).all()
    assert counts[19:255].sum() == 0
    assert 0 < counts[255] < 0.1 * counts.sum()
    shares = counts[:19] / counts[:19].sum()
    assert all(shares[CLASS[name]] > 0.02 for name in ("road", "building", "sky", "vegetation", "car"))


def test_another_size_shows_the_same_street():
    small, large = scenes(size=(64, 128)), scenes(size=(256, 512))
    same = [(small.labels(i) == large.labels(i)[2::4, 2::4]).mean() for i in range(8)]
    assert min(same) > 0.85


def test_colour_tells_about_classes_but_not_all():
    data = scenes(images=16)
    pixels: dict[str, list[np.ndarray]] = {"road": [], "sky": [], "vegetation": []}
    for index in range(16):
        image, labels = data.sample(index)
        for name, found in pixels.items():
            found.append(image[labels == CLASS[name]])
    road, sky, green = (np.concatenate(found).astype(float) for found in pixels.values())
    assert sky.mean() > road.mean() + 30
    assert (green[:, 1] - green[:, 2]).mean() > (road[:, 1] - road[:, 2]).mean() + 15
    assert np.percentile(road.mean(1), 95) > np.percentile(sky.mean(1), 2)  # the light varies


@pytest.mark.parametrize("size", [(16, 16), (17, 333), (400, 40), (1024, 64)])
def test_any_size(size):
    image, labels = scenes(size=size).sample(3)
    assert image.shape == (*size, 3)
    assert set(np.unique(labels)) <= {*range(19), 255}


def test_memory_does_not_grow():
    data = scenes(images=6, size=(128, 256))
    data.sample(0)
    tracemalloc.start()
    sizes = []
    for index in range(1, 6):
        data.sample(index)
        sizes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert sizes[-1] < sizes[1] + 128 * 256
    assert len(pickle.dumps(data)) < 20_000


def test_manifest():
    one = manifest_hash(scenes().manifest())
    assert one == manifest_hash(scenes(size="96x192").manifest())
    others = [scenes(seed=1), scenes(images=7), scenes(size=(96, 191)), scenes("val")]
    assert len({one, *(manifest_hash(data.manifest()) for data in others)}) == 5


def test_label_set_and_form():
    data = scenes()
    assert data.label_set is CITYSCAPES
    assert data.has_labels
    assert "96x192, seed 0" in data.form
    assert len(open_dataset("synthetic", "anything", "train")) == 200


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": 0}, "images is 0; give a whole number from 1"),
        ({"images": "many"}, "images is 'many'"),
        ({"images": True}, "images is True"),
        ({"size": "big"}, "size is 'big'; give HEIGHTxWIDTH"),
        ({"size": "axb"}, "size is 'axb'; give HEIGHTxWIDTH"),
        ({"size": (8, 64)}, "height is 8; give a whole number from 16"),
        ({"size": [64, 10**6]}, "width is 1000000"),
        ({"size": 64}, "size is 64; give HEIGHTxWIDTH"),
        ({"seed": 0.5}, "seed is 0.5"),
        ({"classes": 3}, "has no option 'classes'; its options are images, size, seed"),
    ],
)
def test_options_without_a_meaning(options, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        open_dataset("synthetic", "-", "train", **options)
    assert not isinstance(error.value, DataError)


def test_unknown_split():
    with pytest.raises(DataError, match="synthetic has no split 'trial'; give one of train, val, test"):
        open_dataset("synthetic", "-", "trial")


class TestCanvas:
    """Shapes, by the pixels that they cover."""

    def canvas(self, height=20, width=30):
        return Canvas(height, width, choose_light(Random(0)))

    def covered(self, canvas, paint):
        canvas.pixels[:] = 0
        paint(999)
        assert set(np.unique(canvas.pixels)) <= {0, 999}
        return canvas.pixels == 999

    def test_rectangle_is_cut_off(self):
        canvas = self.canvas()
        mask = self.covered(canvas, lambda value: canvas.rectangle(-5, 15, 4, 99, value))
        assert mask.sum() == 4 * 5
        assert not self.covered(canvas, lambda value: canvas.rectangle(-9, -9, -1, -1, value)).any()
        assert self.covered(canvas, lambda value: canvas.rectangle(3, 3, 3, 3, value)).sum() == 1

    @pytest.mark.parametrize(
        "points",
        [
            [(2, 1), (25, 4), (17, 18)],
            [(-9, -4), (60, 5), (12, 90)],
            [(5, 5), (25, 5), (25, 15), (5, 15)],
            [(15, 0), (29, 9), (16, 19), (1, 11)],
        ],
    )
    def test_polygon(self, points):
        """A row is covered from where the edges cross its middle on the left to where they do on the right."""
        canvas = self.canvas()
        mask = self.covered(canvas, lambda value: canvas.polygon(points, value, textured=False))
        for y in range(20):
            middle, crossings = Fraction(2 * y + 1, 2), []
            for (x0, y0), (x1, y1) in zip(points, [*points[1:], points[0]], strict=True):
                if min(y0, y1) <= y < max(y0, y1):
                    crossings.append(math.floor(x0 + (middle - y0) * (x1 - x0) / (y1 - y0)))
            expected = [bool(crossings) and min(crossings) <= x < max(crossings) for x in range(30)]
            assert mask[y].tolist() == expected

    @pytest.mark.parametrize("points", [[(40, 2), (50, 2), (45, 9)], [(3, -9), (9, -9), (6, -1)], [(3, 30), (9, 44)]])
    def test_polygon_outside(self, points):
        canvas = self.canvas()
        assert not self.covered(canvas, lambda value: canvas.polygon(points, value, textured=False)).any()

    def test_ellipse(self):
        canvas = self.canvas()
        mask = self.covered(canvas, lambda value: canvas.ellipse(12, 9, 8, 5, value, textured=False))
        y, x = np.mgrid[0:20, 0:30]
        assert (mask == ((x - 12) ** 2 * 25 + (y - 9) ** 2 * 64 <= 1600)).mean() > 0.98

    def test_labels_and_colours_come_from_the_material(self):
        canvas = self.canvas()
        canvas.pixels[:] = canvas.material(CLASS["sky"], (100, 150, 200)) + MIDDLE
        car = canvas.material(CLASS["car"], (200, 20, 20)) + MIDDLE
        assert car == canvas.material(CLASS["car"], (200, 20, 20)) + MIDDLE
        canvas.rectangle(10, 5, 20, 15, car)
        labels, image = canvas.labels(), canvas.image(Random(1)).astype(int)
        assert (labels[5:15, 10:20] == CLASS["car"]).all()
        assert (labels == CLASS["sky"]).sum() == 20 * 30 - 100
        assert (image[7:13, 12:18, 0] > image[7:13, 12:18, 2] + 50).all()
        assert (image[:4, :, 2] > image[:4, :, 0]).all()


def test_random_integers_are_uniform_and_in_range():
    random = Random("test")
    counts = np.bincount([random.integer(2, 6) for _ in range(2000)], minlength=8)
    assert counts[:2].sum() == counts[7:].sum() == 0
    assert counts[2:7].min() > 330
    assert Random("a", 1).bits() != Random("a", 2).bits()
    assert Random(5).bits() == Random(5).bits()
