"""Exponential moving average of the weights, with a warm-up: early averages follow the network closely."""

import copy

import torch

from hyperseg.models import HyperSeg


class AveragedNetwork:
    """A copy of a network whose parameters and running statistics are averages; counters are copied.

    The decay of update t is ``min(decay, (1 + t) / (10 + t))``.

    Attributes:
        network: the averages, in eval mode, to validate and save.
        updates: t, a part of the run's state.
    """

    def __init__(self, network: HyperSeg, decay: float):
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay, self.updates = decay, 0

    @torch.no_grad()
    def update(self, network: HyperSeg) -> None:
        """Take in the network's present weights."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        averages, current = self.network.state_dict(), network.state_dict()
        floating = [key for key, value in current.items() if value.is_floating_point()]
        torch._foreach_lerp_([averages[key] for key in floating], [current[key] for key in floating], 1 - decay)
        for key in current.keys() - set(floating):
            averages[key].copy_(current[key])

    def state_dict(self) -> dict[str, object]:
        """Return what :meth:`load_state_dict` takes."""
        return {"network": self.network.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Continue from a state."""
        self.network.load_state_dict(state["network"])  # type: ignore[arg-type]
        self.updates = int(state["updates"])  # type: ignore[call-overload]
