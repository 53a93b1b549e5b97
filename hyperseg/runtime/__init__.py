"""Everything that makes a trained network run fast: folding, fused blocks, CUDA graphs, and the engine around them."""

from typing import TYPE_CHECKING

from hyperseg._lazy import on_first_use
from hyperseg.runtime.errors import EngineError, LostDeviceError

if TYPE_CHECKING:
    from hyperseg.runtime.engine import Engine, build_engine
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

# Those that need the networks.
__getattr__, __dir__ = on_first_use(
    __name__,
    {
        "Engine": "engine",
        "ExplainedCall": "explanation",
        "Explanation": "explanation",
        "FoldedNetwork": "folding",
        "Parity": "parity",
        "Rates": "explanation",
        "build_engine": "engine",
        "measure_rates": "explanation",
    },
)
