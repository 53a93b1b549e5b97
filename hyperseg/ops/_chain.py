"""A chain of encoder blocks as a loop over ``mbconv``."""

from collections.abc import Callable
from typing import Any

from torch import Tensor


def split_chain(
    weights: list[Tensor], expanded: list[int], strides: list[int], paddings: list[int], residuals: list[int]
) -> list[tuple[Any, ...]]:
    """Return the arguments of ``mbconv`` for each block of a ``mbconv_chain``, without its input."""
    blocks: list[tuple[Any, ...]] = []
    given = iter(weights)
    for i, (stride, residual) in enumerate(zip(strides, residuals, strict=True)):
        expansion = (next(given), next(given)) if expanded[i] else (None, None)
        rest = [next(given) for _ in range(8)]
        blocks.append((*expansion, *rest, stride, paddings[4 * i : 4 * i + 4], bool(residual)))
    return blocks


def block_by_block(mbconv: Callable[..., Tensor]) -> Callable[..., list[Tensor]]:
    """``mbconv_chain`` as a loop: for backends without a kernel of several blocks, and to look at block by block."""

    def mbconv_chain(x: Tensor, *args: Any) -> list[Tensor]:
        *chain, kept = args
        outputs = []
        for block, keep in zip(split_chain(*chain), kept, strict=True):
            x = mbconv(x, *block)
            if keep:
                outputs.append(x)
        return outputs

    return mbconv_chain
