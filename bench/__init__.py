"""Benchmarks: one command per file; ``core/`` holds what several commands share.

Commands are scripts: each first puts the checkout on the import path, so that it runs from any folder and uses the
``bench`` and ``hyperseg`` of this checkout.
"""
