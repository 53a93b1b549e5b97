"""Checks of kernels against the reference: arguments and tolerances, which the tests use too."""
