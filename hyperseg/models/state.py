"""State dicts of checkpoints: keys of wrapped networks, missing and surplus keys, values that are not finite."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from hyperseg.models.errors import CheckpointError

# What wrappers put before the keys: DataParallel, DistributedDataParallel and AveragedModel; torch.compile.
_PREFIXES = ("module", "_orig_mod")
# AveragedModel's counter of updates. It is no part of the network.
_COUNTER = "n_averaged"


def checkpoint_path(path: str | os.PathLike[str]) -> Path:
    """Return the path of a checkpoint.

    Raises:
        CheckpointError: it is empty, which pathlib takes for the current folder.
    """
    if not os.fspath(path):
        raise CheckpointError("The path of the checkpoint is empty; is it a variable that is not set?")
    return Path(path)


def plain_keys(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Return a state dict without what wrappers add to its keys, in any nesting.

    These are the prefixes of DataParallel, DistributedDataParallel, AveragedModel and torch.compile, the latter also
    inside a key, for a network of which only a part is compiled.

    Raises:
        CheckpointError: only some of the keys have such a prefix, so they belong to different networks.
    """
    state = dict(state)
    while True:
        heads = {key.partition(".")[0] for key in state}
        if heads - {_COUNTER} == {"module"}:
            state.pop(_COUNTER, None)
        found = sorted(set(_PREFIXES) & heads)
        if not found:
            break
        prefix = f"{found[0]}."
        if other := next((key for key in state if not key.startswith(prefix)), None):
            raise CheckpointError(
                f"{source}: some of its keys begin with {prefix!r} and others, such as {other}, do not, so it is not "
                "clear which network they belong to; keep the keys of one network."
            )
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    result = {key.replace("._orig_mod.", "."): value for key, value in state.items()}
    if len(result) < len(state):
        raise CheckpointError(f"{source} has keys with and without '_orig_mod.'; keep the keys of one network.")
    return result


def check_state(state: Mapping[str, Tensor], expected: Mapping[str, torch.Size], source: str) -> None:
    """Check that a state dict has exactly the expected keys and shapes.

    Raises:
        CheckpointError: they differ; the message lists up to 40 missing, surplus and misshapen keys.
    """
    problems = [f"missing: {key} {tuple(expected[key])}" for key in expected if key not in state]
    problems += [f"surplus: {key}" for key in state if key not in expected]
    problems += [
        f"misshapen: {key} is {tuple(value.shape)}, expected {tuple(expected[key])}"
        for key, value in state.items()
        if key in expected and value.shape != expected[key]
    ]
    if problems:
        shown = "".join(f"\n  {p}" for p in problems[:40])
        more = f"\n  ... and {len(problems) - 40} more" if len(problems) > 40 else ""
        raise CheckpointError(f"{source} does not fit the network, {len(problems)} keys disagree:{shown}{more}")


def weights_hash(model: nn.Module) -> str:
    """Return the SHA-256 of a network's weights and running statistics, the same for every file that holds them."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        if torch.is_floating_point(value):  # counters of batches have no influence
            digest.update(f"{key} {tuple(value.shape)}\n".encode())
            digest.update(value.detach().float().cpu().contiguous().view(-1).numpy())
    return digest.hexdigest()


def check_finite(model: nn.Module, source: str = "The network") -> None:
    """Check that all weights are finite numbers and that no running variance is negative.

    Takes milliseconds, and on a GPU waits for it once.

    Args:
        model: any module; parameters on the meta device are skipped.
        source: how the message begins.

    Raises:
        CheckpointError: some are not; the message names them and says what to do.
    """
    if problems := not_finite(model.state_dict()):
        shown = "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
        raise CheckpointError(
            f"{source} has unusable weights: {shown}. The training that wrote them diverged, or the file is damaged; "
            "use an earlier checkpoint."
        )


@torch.no_grad()
def not_finite(state: Mapping[str, Tensor]) -> list[str]:
    """Return a line for each tensor of a state dict that contains NaN or infinity, or a negative running variance."""
    checked = {k: v for k, v in state.items() if v.is_floating_point() and v.numel() and not v.is_meta}
    # The extremes of a tensor show NaN and infinity. They cross to the host together: one wait for all of a device.
    lowest: dict[str, float] = {}
    highest: dict[str, float] = {}
    for device in {v.device for v in checked.values()}:
        keys = [key for key, value in checked.items() if value.device == device]
        extremes = [torch.stack(torch.aminmax(checked[key].detach())).double() for key in keys]
        lows, highs = torch.stack(extremes, 1).tolist()
        lowest |= zip(keys, lows, strict=True)
        highest |= zip(keys, highs, strict=True)
    lines = []
    for key, value in checked.items():
        low, high = lowest[key], highest[key]
        if low != low:
            lines.append(f"{key} contains NaN ({int(value.isnan().sum())} of {value.numel()} values)")
        elif {low, high} & {float("inf"), float("-inf")}:
            lines.append(f"{key} contains infinity ({int(value.isinf().sum())} of {value.numel()} values)")
        elif low < 0 and key.endswith("running_var"):
            lines.append(f"{key} contains negative variances (down to {low:.3g})")
    return lines
