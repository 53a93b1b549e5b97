"""One process of two for test_sync_norm.py: it trains on its part of each batch and stores what it computed.

python -m tests.models.sync_worker RANK FOLDER
"""

import sys
from pathlib import Path

import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from hyperseg import ops
from hyperseg.models import create_model
from hyperseg.models.norms import synchronise_norms
from tests.models.networks import images

NAME = "hyperseg-s-camvid"
SIZE = (64, 64)
STEPS = 3
FROZEN = "decoder.levels.3.norms"


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = create_model(NAME, drop_path_rate=0.0, head_dropout=0.0).double()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.8, 1.2)
            nn.init.uniform_(norm.bias, -0.2, 0.2)
    return model.train()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Return images and labels of the common batch."""
    x = images(*SIZE, batch=4).double()
    return x, x[:, 0].gt(0).long() + 2 * x[:, 1].gt(0).long()


def train(model: nn.Module, x: torch.Tensor, labels: torch.Tensor, steps: int = STEPS) -> list[float]:
    """Take steps; return the losses."""
    # Biases before a batch norm have no gradient but rounding, which Adam scales up: their error grows with the rate.
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = ops.upsample_cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


# ---------------------------------------------------------------------------------------------------------------------
# Single norms


def settings() -> dict[str, nn.BatchNorm2d]:
    """Return norms with each setting, the same in every process."""
    torch.manual_seed(1)
    norms = {
        "plain": nn.BatchNorm2d(5, eps=1e-3, momentum=0.3),
        "not affine": nn.BatchNorm2d(5, affine=False),
        "no bias": nn.BatchNorm2d(5),
        "cumulative": nn.BatchNorm2d(5, momentum=None),
        "not tracked": nn.BatchNorm2d(5, track_running_stats=False),
        "activated": BatchNormAct2d(5, act_layer=nn.SiLU, inplace=False, drop_layer=nn.Sigmoid),
        "no activation": BatchNormAct2d(5, apply_act=False),
    }
    norms["no bias"].bias = None
    for norm in norms.values():
        for parameter in norm.parameters():
            nn.init.uniform_(parameter, 0.5, 1.5)
    return norms


def run(norm: nn.Module, rows: slice, dtype: torch.dtype, layout: torch.memory_format) -> dict[str, torch.Tensor]:
    """Run a norm twice on these images of a batch; return outputs and gradients of the second call, and its state."""
    norm = norm.to(torch.promote_types(dtype, torch.float32))
    random = torch.Generator().manual_seed(2)
    for _ in range(2):
        x = torch.randn(4, 5, 3, 7, generator=random, dtype=torch.float64) * 2 + torch.arange(5.0)[:, None, None]
        grad = torch.randn(4, 5, 3, 7, generator=random, dtype=torch.float64)
        x = x[rows].to(dtype).contiguous(memory_format=layout).requires_grad_()
        norm.zero_grad()
        y = norm(x)
        y.backward(grad[rows].to(dtype))
        assert y.dtype == x.grad.dtype == dtype
        assert y.is_contiguous(memory_format=layout)
        assert x.grad.is_contiguous(memory_format=layout)
    gradients = {f"d_{name}": p.grad for name, p in norm.named_parameters()}
    return {"y": y.detach(), "d_x": x.grad} | gradients | norm.state_dict()


DTYPES = (torch.float64, torch.float32, torch.bfloat16)
LAYOUTS = (torch.contiguous_format, torch.channels_last)
ROWS = (slice(0, 1), slice(1, 4))  # images of the two processes


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {}
    for dtype in DTYPES:
        for layout in LAYOUTS:
            for name, norm in settings().items():
                found[name, dtype, str(layout)] = run(synchronise_norms(nn.Sequential(norm)), ROWS[rank], dtype, layout)
    called = []
    fused = ops.patch_inverted_residual_batch_norm
    ops.patch_inverted_residual_batch_norm = lambda *a, **k: called.append(k["group"]) or fused(*a, **k)
    for frozen in (False, True):
        model = synchronise_norms(network())
        if frozen:
            model.get_submodule(FROZEN).eval()
        x, labels = batch()
        half = slice(2 * rank, 2 * rank + 2)
        losses = train(DistributedDataParallel(model), x[half], labels[half])
        found[frozen] = {"losses": losses, "state": model.state_dict(), "groups": called.copy()}
        called.clear()
    # Alone, a process could not train on one image of this size: some norms would see one value per channel.
    synchronise_norms(network())(batch()[0][:1, :, :32, :32])
    torch.save(found, folder / f"{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
