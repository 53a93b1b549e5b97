"""Everything that makes a trained network run fast: folding, fused blocks, CUDA graphs, and the engine around them."""

from hyperseg.runtime.engine import Engine, build_engine
from hyperseg.runtime.errors import EngineError, LostDeviceError
from hyperseg.runtime.explanation import ExplainedCall, Explanation, Rates, measure_rates
from hyperseg.runtime.folding import FoldedNetwork
from hyperseg.runtime.parity import Parity

__all__ = [
    "Engine",
    "EngineError",
    "ExplainedCall",
    "Explanation",
    "FoldedNetwork",
    "LostDeviceError",
    "Parity",
    "Rates",
    "build_engine",
    "measure_rates",
]
