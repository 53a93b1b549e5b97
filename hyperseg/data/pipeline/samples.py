"""Sample k of a training run: which image it is, and the random numbers of its augmentation."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import NamedTuple

import numpy as np

ORDERS = ("replacement", "permutation")
_SAMPLE, _PERMUTATION = 0, 1  # independent streams of one seed


class Draws(NamedTuple):
    """Random numbers of one sample, uniform in [0, 1), one per decision.

    An augmentation that does not use a number leaves the others as they are. So two recipes that differ in their
    colours see the same crops.
    """

    image: float
    resized: float
    scale: float
    top: float
    left: float
    flip: float
    angle: float
    brightness: float
    contrast: float
    saturation: float
    hue: float
    color_order: float
    python_seed: float
    torch_seed: float


class Sample(NamedTuple):
    """Sample `number` of a run is this image of the data set, with these random numbers."""

    number: int
    image: int
    draws: Draws


@dataclass(frozen=True)
class Sampler:
    """The endless sequence of a run's samples. Each is a function of the seed and its number.

    The numbers are the raw output of a Philox generator, so they are the same on every platform and in every version of
    NumPy.

    Args:
        size: images in the data set.
        seed: 0 to 2^64 - 1.
        order: "replacement": each sample is any image, as in the official recipes; "permutation": every image once per
            epoch of `size` samples.

    Raises:
        ValueError: an argument is out of range.
    """

    size: int
    seed: int = 0
    order: str = "replacement"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"the data set has {self.size} images; a sampler needs one or more")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"the seed is {self.seed}; give 0 to 2^64 - 1")
        if self.order not in ORDERS:
            raise ValueError(f"there is no order {self.order!r}; give {' or '.join(ORDERS)}")

    def sample(self, number: int) -> Sample:
        """Return sample `number` (0, 1, ...)."""
        draws = Draws(*_unit(_raw(self.seed, number, _SAMPLE, len(Draws._fields))))
        if self.order == "permutation":
            epoch, position = divmod(number, self.size)
            return Sample(number, int(_permutation(self.seed, epoch, self.size)[position]), draws)
        return Sample(number, int(draws.image * self.size), draws)

    @staticmethod
    def batch(step: int, rank: int, world_size: int, batch_size: int) -> range:
        """Return the numbers of the samples of one process in one step.

        Args:
            step: 0, 1, ...
            rank, world_size: of the process, and their number.
            batch_size: of all processes together. The samples of a step depend on it and on nothing else.

        Raises:
            ValueError: the batch cannot be divided among the processes.
        """
        check_batch(rank, world_size, batch_size)
        return range(step * batch_size + rank, (step + 1) * batch_size, world_size)

    def batches(self, first: int, steps: int | None, rank: int, world_size: int, batch_size: int) -> Iterator[range]:
        """Yield :meth:`batch` of `steps` steps from `first`; None: without end."""
        for step in count(first) if steps is None else range(first, first + steps):
            yield self.batch(step, rank, world_size, batch_size)


def check_batch(rank: int, world_size: int, batch_size: int) -> None:
    """Raise ValueError unless `batch_size` samples can be divided among `world_size` processes, `rank` one of them."""
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} of {world_size} processes; ranks are 0 to {world_size - 1}")
    if batch_size < 1 or batch_size % world_size:
        raise ValueError(
            f"a batch of {batch_size} cannot be divided among {world_size} processes; "
            f"give a multiple of {world_size} (the batch of all processes together)"
        )


def _raw(seed: int, number: int, stream: int, count: int) -> np.ndarray:
    key = np.array([seed, number], dtype=np.uint64)
    counter = np.array([0, 0, 0, stream], dtype=np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(count)


def _unit(raw: np.ndarray) -> list[float]:
    """Turn 64 random bits into a float in [0, 1), exactly: the upper 53 bits."""
    return ((raw >> np.uint64(11)) * 2.0**-53).tolist()


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    return np.argsort(_raw(seed, epoch, _PERMUTATION, size), kind="stable")
