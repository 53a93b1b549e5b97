"""Kernels and launchers that several operators share; an operator's own kernels are in its file one folder up."""
