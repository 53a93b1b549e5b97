"""Seeds: the noise of a step, such as dropout, depends on nothing but the seed, the step and the process."""

import hashlib
import random

import numpy as np
import torch


def mix(seed: int, step: int, rank: int = 0) -> int:
    """Return a seed for a step of a process, from 0 to 2**63 - 1, unrelated to those of its neighbours."""
    digest = hashlib.blake2b(f"{seed},{step},{rank}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_step(seed: int, step: int, rank: int = 0) -> None:
    """Seed PyTorch's generators, of all devices, for the step after ``step`` completed ones."""
    torch.manual_seed(mix(seed, step, rank))


def seed_run(seed: int) -> None:
    """Seed all global generators for a new run; those of Python and NumPy are for code of others."""
    random.seed(mix(seed, -1))
    np.random.seed(mix(seed, -1) % 2**32)  # noqa: NPY002
    torch.manual_seed(mix(seed, -1))
