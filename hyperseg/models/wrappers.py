"""Take the network out of what training puts around it: DataParallel, averaged models, torch.compile."""

import copy
from typing import Any

from torch import nn

from hyperseg.models.hyperseg import HyperSeg

# The only child of a wrapper that passes everything through: DataParallel, DistributedDataParallel, AveragedModel and
# the like; torch.compile. By name, not by class: importing torch's compiler takes seconds.
_CHILDREN = ("module", "_orig_mod")
_SHARDED = (
    "its weights are divided between processes (FSDP). Gather them into a network of one process first: "
    "torch.distributed.checkpoint.state_dict.get_model_state_dict with full_state_dict=True, then load_state_dict of "
    "hyperseg.create_model"
)


def unwrap(model: Any) -> HyperSeg:
    """Return the network inside DataParallel, DistributedDataParallel, AveragedModel or torch.compile, in any nesting.

    Other wrappers count too if they keep the network as their only child, under the name ``module``, as those for
    exponential averages do: the result is the averaged network. If parts of the network are compiled, the result is a
    copy without that, which shares all parameters and buffers.

    Raises:
        TypeError: it is not a network, or a module that does more than to wrap one. The message says what to give.
    """
    found = model
    while isinstance(found, nn.Module) and not isinstance(found, HyperSeg):
        inner = _child(found)
        if inner is None:
            break
        found = inner
    if not isinstance(found, HyperSeg):
        raise TypeError(f"Expected a HyperSeg network, got {_name(model)}: {_reason(found)}.")
    if any(hasattr(parameter, "full_tensor") for parameter in found.parameters()):
        raise TypeError(f"Expected a HyperSeg network of one process: {_SHARDED}.")
    return _plain(found)


def _child(module: nn.Module) -> nn.Module | None:
    names = list(module._modules)
    return module._modules[names[0]] if len(names) == 1 and names[0] in _CHILDREN else None


def _plain(network: HyperSeg) -> HyperSeg:
    """Return the network, or if torch.compile or DataParallel wraps parts of it, a copy that has these parts alone."""
    parallel = nn.DataParallel | nn.parallel.DistributedDataParallel
    wrapped = [m for m in network.modules() if list(m._modules) == ["_orig_mod"] or isinstance(m, parallel)]
    if not wrapped:
        return network
    shared: dict[int, Any] = {id(tensor): tensor for tensor in [*network.parameters(), *network.buffers()]}
    for module in reversed(wrapped):  # the innermost first
        shared[id(module)] = copy.deepcopy(_child(module), shared)
    return copy.deepcopy(network, shared)


def _reason(found: Any) -> str:
    """Return why there is no single network in it, and what to do."""
    if not isinstance(found, nn.Module):
        return "give what hyperseg.create_model or hyperseg.load returns"
    if "_fsdp_wrapped_module" in found._modules:
        return _SHARDED
    networks = [name for name, module in found.named_modules() if isinstance(module, HyperSeg)]
    if not networks:
        return "there is no HyperSeg network in it; give what hyperseg.create_model or hyperseg.load returns"
    paths = " or ".join(f"get_submodule({name!r})" for name in networks[:3])
    if len(networks) == 1:
        return f"the network is a part of it, and what else it does would be lost; give the network alone, {paths}"
    return f"there are {len(networks)} networks in it; give the one that is meant, {paths}"


def _name(model: Any) -> str:
    return f"{type(model).__module__}.{type(model).__qualname__}".removeprefix("builtins.")
