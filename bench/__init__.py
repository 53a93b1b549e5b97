"""Benchmarks. Run from the repository root, for example `python bench/fps.py --model hyperseg-s`."""
