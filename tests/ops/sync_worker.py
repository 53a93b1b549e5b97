"""One process of two for test_sync_norm.py: it runs its part of each batch and stores what it computed.

python -m tests.ops.sync_worker RANK FOLDER DEVICE BACKEND...
"""

import sys
from itertools import accumulate
from pathlib import Path

import torch
from torch import distributed

from hyperseg import ops
from hyperseg.ops import BACKENDS, use_backend
from hyperseg.ops.patch_inverted_residual import HALOS
from hyperseg.verify.arguments import Case, batch_norm, normal

OPERATOR = "patch_inverted_residual_batch_norm"
NAMES = ("y", "mean", "variance", "x", "weights", "scale", "shift")
SIZES = ((1, 1), (1, 2))  # images of the two processes
INTERPRETED = ((1, 2), "own")  # Triton's interpreter takes seconds per call
DTYPES = (torch.float64, torch.float32, torch.bfloat16)


def case(halo: str, images: int) -> Case:
    return Case(OPERATOR, f"{halo}-synchronised", batch_norm(images, grid=(1, 2), patch=(3, 2), halo=halo))


def gradient(images: int) -> torch.Tensor:
    return normal(torch.Generator().manual_seed(1), images, 4, 3, 4)


def step(arguments: tuple, grad: torch.Tensor, group: str) -> tuple[torch.Tensor, ...]:
    """Return outputs and gradients of the operator, as in NAMES."""
    tensors = [t.clone().requires_grad_() for t in arguments[:4]]
    hidden, out_channels, halo, eps, _ = arguments[4:]
    y, mean, variance = ops.patch_inverted_residual_batch_norm(
        *tensors, hidden=hidden, out_channels=out_channels, halo=halo, eps=eps, group=group
    )
    return y.detach(), mean, variance, *torch.autograd.grad(y, tensors, grad.to(y))


def main(rank: int, folder: Path, device: str, backends: list[str]) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {}
    for backend in backends:
        for sizes in SIZES:
            end = list(accumulate(sizes))[rank]
            part = slice(end - sizes[rank], end)
            for halo in HALOS:
                if (backend, device) == ("triton", "cpu") and (sizes, halo) != INTERPRETED:
                    continue
                for dtype in DTYPES:
                    x, weights, *rest = case(halo, sum(sizes)).arguments(dtype, device)
                    arguments = (x[part], weights[part], *rest)
                    if BACKENDS[backend].not_supported_reasons(OPERATOR, arguments):
                        continue
                    with use_backend(backend):
                        results = step(arguments, gradient(sum(sizes))[part], distributed.group.WORLD.group_name)
                    found[backend, sizes, halo, dtype] = dict(zip(NAMES, [t.cpu() for t in results], strict=True))
    torch.save(found, folder / f"{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4:])
