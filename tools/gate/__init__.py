"""Checks of compiled kernels without a GPU: registers, shared memory, spills and tensor-core use against budgets."""
