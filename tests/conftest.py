import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Maps as small as the tests' cost more on several threads than they gain, most of all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
