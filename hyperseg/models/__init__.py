"""Everything that defines a network: configurations, modules, registry, checkpoints. Engines are in runtime."""

from typing import TYPE_CHECKING

from hyperseg._lazy import on_first_use
from hyperseg.models.config import HyperSegConfig
from hyperseg.models.errors import CheckpointError
from hyperseg.models.variants import ALIASES, PUBLISHED, VARIANTS, list_models, model_config

if TYPE_CHECKING:
    from hyperseg.models.checkpoint import load
    from hyperseg.models.hyperseg import HyperSeg
    from hyperseg.models.norms import synchronise_norms
    from hyperseg.models.official import load_official, save_official
    from hyperseg.models.registry import create_model
    from hyperseg.models.state import check_finite
    from hyperseg.models.storage import save
    from hyperseg.models.synthetic import probe_frames, synthesize_weights
    from hyperseg.models.wrappers import unwrap

__all__ = [
    "ALIASES",
    "PUBLISHED",
    "VARIANTS",
    "CheckpointError",
    "HyperSeg",
    "HyperSegConfig",
    "check_finite",
    "create_model",
    "list_models",
    "load",
    "load_official",
    "model_config",
    "probe_frames",
    "save",
    "save_official",
    "synchronise_norms",
    "synthesize_weights",
    "unwrap",
]

# Those that need PyTorch and timm.
__getattr__, __dir__ = on_first_use(
    __name__,
    {
        "HyperSeg": "hyperseg",
        "check_finite": "state",
        "create_model": "registry",
        "load": "checkpoint",
        "load_official": "official",
        "probe_frames": "synthetic",
        "save": "storage",
        "save_official": "official",
        "synchronise_norms": "norms",
        "synthesize_weights": "synthetic",
        "unwrap": "wrappers",
    },
)
