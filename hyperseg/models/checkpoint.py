"""Load a checkpoint in either format, the library's own (``storage.py``) or the official code's (``official.py``).

Released weights are loaded by the name of their network (``released.py``), networks on the Hugging Face Hub by that
of their repository (``hub.py``).
"""

import os

import torch

from hyperseg.models.config import CONFIG_FILE, WEIGHTS_FILE
from hyperseg.models.errors import CheckpointError
from hyperseg.models.hub import hub_name, is_hub_name, load_from_hub
from hyperseg.models.hyperseg import HyperSeg
from hyperseg.models.official import load_official
from hyperseg.models.released import load_released, named_network, names_hint
from hyperseg.models.state import checkpoint_path
from hyperseg.models.storage import is_own_format, load_own_format
from hyperseg.models.variants import model_config


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
            The contents decide which it is, not the suffix. Or the name of a published network, such as
            ``"hyperseg-m-cityscapes"``, unless a file or folder is called so: its released weights are downloaded to
            the cache folder once, see ``hyperseg/models/released.py``. Or ``"hf-hub:OWNER/NAME"`` or
            ``"hf-hub:OWNER/NAME@REVISION"``: a repository on the Hugging Face Hub that ``hyperseg push`` wrote, see
            ``hyperseg/models/hub.py``.
        device: where the network is put.
        name: the network that the checkpoint contains, see :func:`hyperseg.list_models`. Needed only for an official
            file that does not name it (no ``arch``).
        check_finite: refuse NaN, infinity and negative variances; False loads them too, to inspect a diverged run.

    Returns:
        The network, in eval mode, on ``device``.

    Raises:
        CheckpointError: the checkpoint cannot be read, does not fit its network, has values that are not finite, or
            contains another network than ``name``; or it cannot be downloaded. The message names the file.
        ValueError: there is no network ``name``.
    """
    path = checkpoint_path(path)
    expected = None if name is None else model_config(name).name
    if is_hub_name(str(path)):
        return _expect(expected, load_from_hub(hub_name(str(path)), device, check_finite), str(path))
    if not path.exists():
        network = named_network(str(path))
        if network is None:
            raise CheckpointError(
                f"{path} does not exist; a checkpoint is a directory with {CONFIG_FILE} and {WEIGHTS_FILE}, "
                f"or a .pth file of the official code. By name: {names_hint(str(path))}; or hf-hub:OWNER/NAME"
            )
        if expected not in (None, network):
            raise CheckpointError(f"{path} is the network {network}, not {expected}.")
        return load_released(network, device, check_finite)
    if not is_own_format(path):
        return load_official(path, expected, device, check_finite)
    return _expect(expected, load_own_format(path, device, check_finite), str(path))


def _expect(expected: str | None, model: HyperSeg, source: str) -> HyperSeg:
    if expected not in (None, model.config.name):
        raise CheckpointError(f"{source} contains {model.config.name}, not {expected}.")
    return model
