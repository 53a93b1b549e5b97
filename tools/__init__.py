"""Checks of the project itself, run as ``python -m tools.<name>``."""
