"""Training: a step loop, and one file per idea around it; ``loop.py`` reads them all.

The unit is the optimiser step. Everything random is a function of the seed and the step, so that a run that was
interrupted ends as one that was not.
"""

from typing import Any

from hyperseg.training.config import ConfigError, TrainingConfig, load_recipe, recipe_names

__all__ = ["ConfigError", "TrainingConfig", "load_recipe", "recipe_names", "train"]


def __getattr__(name: str) -> Any:
    if name == "train":  # imported on first use: recipes can be read without networks
        from hyperseg.training.loop import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
