"""Inference: folded networks and the engine."""

from hyperseg.runtime.engine import Engine, EngineError, Parity, build_engine
from hyperseg.runtime.folding import FoldedNetwork

__all__ = ["Engine", "EngineError", "FoldedNetwork", "Parity", "build_engine"]
