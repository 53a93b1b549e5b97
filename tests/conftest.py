import gc
import os
import sys

import pytest
import torch

FAULT = 70  # exit code of a worker whose GPU context is lost

# Kernels are verified by the tests, not before them; tests/verify turns this on again, with a cache folder of its own.
os.environ["HYPERSEG_VERIFY"] = "0"


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Run PyTorch on one thread: the tests' maps are so small that more threads are slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Spare the garbage collector the millions of objects that imports and the list of tests leave: they all stay."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


def pytest_unconfigure():
    gc.unfreeze()  # extensions report what is left at the exit as leaked


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Leave the process after a kernel that faults, as every later call on the GPU would report the same error.

    pytest-xdist then names this test and runs the others in a new worker.
    """
    try:
        return (yield)
    finally:
        if item.get_closest_marker("gpu") and torch.cuda.is_available() and "PYTEST_XDIST_WORKER" in os.environ:
            try:
                torch.cuda.synchronize()
            except Exception as error:
                print(f"{item.nodeid}: {error}", file=sys.__stderr__, flush=True)
                os._exit(FAULT)
