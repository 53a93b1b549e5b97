"""Evaluation: how predictions are made and scored on a data set, as published; over models and data, never in them."""

from hyperseg.evaluation.tta import forward_pyramid

__all__ = ["forward_pyramid"]
