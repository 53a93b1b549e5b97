"""Everything that makes a trained network run fast: folding, fused blocks, CUDA graphs, and the engine around them."""

from hyperseg.runtime.engine import Engine, EngineError, build_engine
from hyperseg.runtime.folding import FoldedNetwork
from hyperseg.runtime.parity import Parity

__all__ = ["Engine", "EngineError", "FoldedNetwork", "Parity", "build_engine"]
