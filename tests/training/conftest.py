from tests.training.runs import tiny_network  # noqa: F401 - a fixture for all tests here
