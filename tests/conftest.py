import os

import pytest
import torch

# Kernels are verified by the tests, not before them; tests/verify turns this on again, with a cache folder of its own.
os.environ["HYPERSEG_VERIFY"] = "0"


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Run PyTorch on one thread: the tests' maps are so small that more threads are slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
