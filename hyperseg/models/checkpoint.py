"""Load a checkpoint in either format: the library's own (``storage.py``) or the official code's (``official.py``)."""

import os

import torch

from hyperseg.models.hyperseg import HyperSeg
from hyperseg.models.official import load_official
from hyperseg.models.registry import model_config
from hyperseg.models.state import CheckpointError, checkpoint_path
from hyperseg.models.storage import CONFIG_FILE, WEIGHTS_FILE, is_own_format, load_own_format


def load(
    path: str | os.PathLike[str],
    device: str | torch.device = "cpu",
    name: str | None = None,
    check_finite: bool = True,
) -> HyperSeg:
    """Load a network from a checkpoint. Nothing in the file is executed.

    Args:
        path: a folder that :func:`hyperseg.save` wrote, the ``model.safetensors`` in it, or a ``.pth`` file of the
            official code, also of a network in DataParallel, DistributedDataParallel, AveragedModel or torch.compile.
            The contents decide which it is, not the suffix.
        device: where the network is put.
        name: the network that the checkpoint contains, see :func:`hyperseg.list_models`. Needed only for an official
            file that does not name it (no ``arch``).
        check_finite: refuse NaN, infinity and negative variances; False loads them too, to inspect a diverged run.

    Returns:
        The network, in eval mode, on ``device``.

    Raises:
        CheckpointError: the checkpoint cannot be read, does not fit its network, has values that are not finite, or
            contains another network than ``name``. The message names the file.
        ValueError: there is no network ``name``.
    """
    path = checkpoint_path(path)
    expected = None if name is None else model_config(name).name
    if not path.exists():
        raise CheckpointError(
            f"{path} does not exist; a checkpoint is a directory with {CONFIG_FILE} and {WEIGHTS_FILE}, "
            "or a .pth file of the official code."
        )
    if not is_own_format(path):
        return load_official(path, expected, device, check_finite)
    model = load_own_format(path, device, check_finite)
    if expected not in (None, model.config.name):
        raise CheckpointError(f"{path} contains {model.config.name}, not {expected}.")
    return model
