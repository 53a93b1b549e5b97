"""The arithmetic that float32 gets on a GPU."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """Inside, float32 products are IEEE float32 ones (TF32 off); after it, whatever they were before.

    By the newer of PyTorch's two interfaces, which can be read and restored however the other was used before; the
    older one (``allow_tf32``) raises after the newer was used.
    """
    cudnn: Any = torch.backends.cudnn  # whose stubs lack what it gained
    places: list[Any] = [torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn]
    before = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = "ieee"
        yield
    finally:
        for place, precision in zip(places, before, strict=True):
            place.fp32_precision = precision
