"""What a frame of a fused network runs: HyperSeg's operators, and no kernel of PyTorch's."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hyperseg.models import create_model
from hyperseg.runtime import FoldedNetwork
from tests.models.networks import NAMES


class Kernels(TorchDispatchMode):
    """Counts the operators of a frame that are not views."""

    def __init__(self):
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view:
            self.counts[str(func).removesuffix(".default")] += 1
        return func(*args, **(kwargs or {}))


def frame(name: str, size: tuple[int, int] | None = None) -> Counter[str]:
    """Return what a frame calls on a GPU; without grad mode composite operators show what they consist of."""
    with torch.device("meta"):
        model = create_model(name)
    folded = FoldedNetwork(model, fuse=True, generate_ahead=True).half().to(memory_format=torch.channels_last)
    frames = torch.empty(1, *(size or model.config.resolution), 3, device="meta", dtype=torch.uint8)
    with torch.no_grad(), Kernels() as kernels:
        folded.from_frames(frames)
    return kernels.counts


@pytest.mark.parametrize("name", NAMES)
def test_no_kernel_of_pytorch_runs_in_a_frame(name):
    counts = frame(name)
    assert [operator for operator in counts if not operator.startswith("hyperseg.")] == []
    head = counts["hyperseg.pointwise_conv"] + counts["hyperseg.context_head"]
    assert head == 2, "one call for the encoder's head and all reductions, one for the context head"
    assert counts["hyperseg.normalise_frames"] == (name.startswith("hyperseg-l-"))


@pytest.mark.parametrize("size", [(505, 507), (97, 193), (33, 31)], ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("name", NAMES)
def test_odd_sizes_only_crop_the_labels(name, size):
    """The operators pad. Labels of a padded frame are cropped by a copy."""
    others = {operator: n for operator, n in frame(name, size).items() if not operator.startswith("hyperseg.")}
    assert others in ({}, {"aten.clone": 1})
