"""Everything that defines a network: configurations, modules, registry, checkpoints. Engines are in runtime."""

from hyperseg.models.checkpoint import load
from hyperseg.models.config import HyperSegConfig
from hyperseg.models.hyperseg import HyperSeg
from hyperseg.models.norms import synchronise_norms
from hyperseg.models.official import load_official, save_official
from hyperseg.models.registry import create_model, list_models, model_config
from hyperseg.models.state import CheckpointError, check_finite
from hyperseg.models.storage import save
from hyperseg.models.synthetic import probe_frames, synthesize_weights
from hyperseg.models.variants import ALIASES, PUBLISHED, VARIANTS
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
