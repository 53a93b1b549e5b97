"""Random numbers and textures of scenes: integers only, so that they are equal on every machine."""

import functools
import hashlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")
_MASK = 2**64 - 1


class Random:
    """Random integers from a key (SplitMix64 with the key's SHA-256 as its start)."""

    def __init__(self, *key: object) -> None:
        text = "/".join(map(str, key))
        self._state = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")

    def bits(self) -> int:
        """Return an integer from 0 to 2**64 - 1."""
        self._state = (self._state + 0x9E3779B97F4A7C15) & _MASK
        value = self._state
        value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & _MASK
        value = ((value ^ value >> 27) * 0x94D049BB133111EB) & _MASK
        return value ^ value >> 31

    def integer(self, low: int, high: int) -> int:
        """Return an integer from `low` to `high`, both included."""
        return low + (self.bits() * (high - low + 1) >> 64)

    def chance(self, percent: int) -> bool:
        """Return True in `percent` of 100 calls."""
        return self.integer(0, 99) < percent

    def choice(self, values: Sequence[T]) -> T:
        """Return one of the values."""
        return values[self.integer(0, len(values) - 1)]

    def bytes(self, *shape: int) -> np.ndarray:
        """Return uniform uint8 of this shape."""
        count = int(np.prod(shape))
        # NumPy keeps the raw numbers of its bit generators from version to version, not those of its distributions.
        words = np.random.PCG64(self.bits()).random_raw(-(-count // 8))
        return words.astype("<u8", copy=False).view(np.uint8)[:count].reshape(shape)


def smooth(values: np.ndarray, times: int = 1) -> np.ndarray:
    """Return integers averaged with their neighbours, as on a torus, `times` over."""
    for _ in range(times):
        for axis in (0, 1):
            values = (2 * values + np.roll(values, 1, axis) + np.roll(values, -1, axis) + 2) >> 2
    return values


def clouds(random: Random, height: int, width: int, coarsest: int, finest: int = 1) -> np.ndarray:
    """Return noise of several scales, uint8 from 0 to 255, which can be tiled; sides are multiples of `coarsest`."""
    total = np.zeros((height, width), np.int64)
    step = coarsest
    while step >= finest:
        grid = random.bytes(height // step, width // step).astype(np.int64)
        grid = grid.repeat(step, 0).repeat(step, 1) << 6
        for _ in range(2):  # two box filters as wide as a cell
            for axis in (0, 1):
                total_before = np.cumsum(np.concatenate([grid] * 2, axis), axis)
                index = np.arange(grid.shape[axis]) + grid.shape[axis]
                grid = (np.take(total_before, index - 1, axis) - np.take(total_before, index - 1 - step, axis)) // step
        total += grid * step
        step //= 2
    total -= total.min()
    return (total * 255 // total.max()).astype(np.uint8)


@functools.lru_cache(maxsize=1)
def cloud_tile() -> np.ndarray:
    """Return the noise that skies are cut from: uint8 [512, 1024]."""
    return clouds(Random("sky"), 512, 1024, coarsest=128, finest=4)


@functools.lru_cache(maxsize=1)
def ground_tiles() -> np.ndarray:
    """Return the noise of the ground, ever smoother: uint8 [5 * 256 * 256], values 0 to 8."""
    fine = Random("ground").bytes(256, 256).astype(np.int64)
    coarse = clouds(Random("ground patches"), 256, 256, coarsest=64, finest=4).astype(np.int64)
    levels = []
    for level in range(5):
        grains = smooth(fine, 1 + 2 * level)
        contrast = (64, 56, 44, 32, 20)[level]
        spread = max(1, int(np.abs(grains - 128).max()))
        value = 128 + (grains - 128) * contrast // spread + (coarse - 128) * 5 // 16
        levels.append(np.clip(value * 9 // 256, 0, 8).astype(np.uint8))
    return np.stack(levels).reshape(-1)


@functools.lru_cache(maxsize=4)
def grain(height: int, width: int) -> np.ndarray:
    """Return the noise of surfaces: uint16 [height, width], values 0 to 2."""
    tile = smooth(Random("grain").bytes(256, 256).astype(np.int64), 1)
    tile = np.clip((tile - 96) // 24, 0, 2).astype(np.uint16)
    return np.tile(tile, (-(-height // 256), -(-width // 256)))[:height, :width].copy()


@functools.lru_cache(maxsize=1)
def crowns() -> list[tuple[np.ndarray, np.ndarray]]:
    """Return crowns of trees, each as a mask (bool [256, 256]) and brightness (uint16, 0 to 31), lit from above."""
    found = []
    for number in range(6):
        random = Random("crown", number)
        y, x = np.mgrid[0:256, 0:256]
        mask = np.zeros((256, 256), bool)
        shade = np.zeros((256, 256), np.int64)
        leaves = smooth(random.bytes(256, 256).astype(np.int64), 1)
        ragged = (smooth(random.bytes(256, 256).astype(np.int64), 4) - 128) * 12
        for _ in range(60):  # the last ones are in front
            radius = random.integer(16, 40)
            reach = 126 - radius
            while True:
                dx, dy = random.integer(-reach, reach), random.integer(-reach, reach)
                if dx * dx + dy * dy <= reach * reach:
                    break
            distance = (x - 128 - dx) ** 2 + (y - 128 - dy) ** 2
            inside = distance + ragged < radius * radius
            light = 13 + (128 + dy - y) * 9 // radius - dy // 16 + random.integer(-2, 2)
            mask |= inside
            shade = np.where(inside, light, shade)
        shade = np.clip(shade + (leaves - 128) // 10, 0, 31)
        found.append((mask & (leaves < 196), shade.astype(np.uint16)))
    return found
