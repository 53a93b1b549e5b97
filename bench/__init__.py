"""Benchmarks: one command per file; ``core/`` holds what several commands share."""
